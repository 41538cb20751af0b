"""If these fail, random captions are drawn from another distribution than nucleus sampling says."""

import torch

from library.captioning.sampling import KeyedNucleusSampling, draw_from_nucleus

PROBABILITIES = torch.tensor([0.05, 0.5, 0.15, 0.3])  # the tokens in order of probability: 1, 3, 2, 0


def drawn(number, top_p):
    return draw_from_nucleus(PROBABILITIES.log()[None], torch.tensor([number]).double(), top_p).item()


def test_a_token_is_drawn_with_its_share_of_the_nucleus():
    # 0.7: the fewest tokens that reach it are 1 and 3 with 0.8 together: 1 has 5/8 of that
    assert [drawn(number, 0.7) for number in (0.0, 0.62, 0.63, 0.999999)] == [1, 1, 3, 3]
    # 0.5 is reached by the first alone, 0.81 by three: 0.5/0.95 = 0.526, 0.8/0.95 = 0.842
    assert [drawn(number, 0.49) for number in (0.0, 0.999999)] == [1, 1]
    assert [drawn(number, 0.81) for number in (0.52, 0.53, 0.84, 0.85)] == [1, 3, 3, 2]
    # 1.0: all of them
    assert [drawn(number, 1.0) for number in (0.49, 0.51, 0.79, 0.81, 0.94, 0.96)] == [1, 3, 3, 2, 2, 0]


def test_what_is_impossible_is_never_drawn():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(1000, 3)
    assert set(draw_from_nucleus(scores, torch.linspace(0, 1, 1001)[:-1].double(), 1.0).tolist()) == {1}


def test_keys_and_positions_make_independent_draws():
    """Over many images and positions each token comes as often as its probability says (5 standard deviations)."""
    keys = [f"{number}.png" for number in range(2000)]
    sampling = KeyedNucleusSampling(keys, 1, 0.7)
    scores = PROBABILITIES.log().expand(len(keys), 4)
    draws = torch.stack([sampling(torch.zeros(len(keys), length), scores).argmax(-1) for length in (1, 2)])
    share = 5 / 8
    for tokens in draws:
        assert abs((tokens == 1).double().mean() - share) < 5 * (share * (1 - share) / len(keys)) ** 0.5
    both = ((draws[0] == 1) & (draws[1] == 1)).double().mean()
    assert abs(both - share**2) < 5 * (share**2 * (1 - share**2) / len(keys)) ** 0.5
