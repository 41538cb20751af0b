"""Without these values a run's metadata would not name the base model that image programs have indexed."""

import pytest

from library.cli.file_hashes import file_sha256, model_hash

BLOCK = bytes((i * 7 + 3) % 256 for i in range(4096))
CASES = {
    0: ("e3b0c442", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    10: ("e3b0c442", "aadd73eb67f4e48bdb358638d0c42f341afcf9f60d717418d863a6f69238e01f"),
    1048586: ("aadd73eb", "08e33a5dca4bc98a343a27d75c84cadae8694a436f5c63e1031bad1757e65609"),
    1114117: ("510b126e", "887519cd1b0c846ede408bf17e04560e15b6ee34d8f965ddf29fef94981a5ea4"),
    2097152: ("510b126e", "c1b153e61d7d7835c625cc3077b85c18808a8c0f6e6b157b9bfc4546b5a34abb"),
}


@pytest.mark.parametrize("size", CASES)
def test_hashes_are_those_that_image_programs_compute(tmp_path, size):
    path = tmp_path / "model.ckpt"
    path.write_bytes((BLOCK * (size // len(BLOCK) + 1))[:size])
    assert (model_hash(path), file_sha256(path)) == CASES[size]
