"""If these fail, a run over two machines does not start, does not learn what one does, or goes two ways at once.

The machines are network namespaces, joined by a pair of virtual devices: each has an address and ports of its own.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import programs
from tests.end_to_end.runs import ROOT, arguments, copy_images, train
from tests.end_to_end.whole_models import assert_alike, train_whole

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # tests run beside each other
PORT = str(29577 + WORKER)
HOSTS = {"10.213.7.1": f"train-host-{WORKER}-0", "10.213.7.2": f"train-host-{WORKER}-1"}
LINKS = (f"train-{WORKER}-0", f"train-{WORKER}-1")


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)


@pytest.fixture
def hosts():
    """The names of two machines."""
    try:
        made = [ip("netns", "add", name) for name in HOSTS.values()]
        made.append(ip("link", "add", LINKS[0], "type", "veth", "peer", "name", LINKS[1]))
    except FileNotFoundError:
        pytest.skip("there is no program ip")
    try:
        if any(each.returncode for each in made):
            pytest.skip(f"no network namespaces: {''.join(each.stderr for each in made)}")
        for (address, name), link in zip(HOSTS.items(), LINKS, strict=True):
            for words in (
                ("link", "set", link, "netns", name),
                ("-n", name, "addr", "add", f"{address}/24", "dev", link),
                ("-n", name, "link", "set", link, "up"),
                ("-n", name, "link", "set", "lo", "up"),
            ):
                done = ip(*words)
                assert done.returncode == 0, done.stderr
        yield list(HOSTS.values())
    finally:
        ip("link", "del", LINKS[0])
        for name in HOSTS.values():
            ip("netns", "del", name)


# becomes a program on another machine
ON_HOST = """
import ctypes, os, sys
from tests import programs

CLONE_NEWNET = 0x40000000
if ctypes.CDLL(None).setns(os.open(f"/var/run/netns/{sys.argv[1]}", os.O_RDONLY), CLONE_NEWNET):
    sys.exit("no other machine")
programs.become(sys.argv[2:], dict(os.environ))
"""


def start(machine, argv, *, host=None, address="127.0.0.1", link="lo", folder=ROOT, script="train_network.py"):
    """The part of one machine in `accelerate launch` on two, a process on each."""
    launcher = ["-m", programs.LAUNCHER, "launch"]
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "2", "--machine_rank", str(machine)]
    options += ["--main_process_ip", address, "--main_process_port", PORT]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": link}
    words = [*launcher, *options, str(ROOT / script), *argv]
    return programs.start(words if host is None else ["-c", ON_HOST, host, *words], env=env, cwd=folder)


def ended(*machines):
    try:
        return [machine.communicate(timeout=300)[1] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()


@pytest.mark.slow
def test_two_machines_learn_what_one_process_does_with_twice_the_accumulation(data_dir, tmp_path, hosts):
    options = {"max_train_steps": 5, "train_batch_size": 1, "cache_latents": True, "save_state": True}
    one = train(data_dir, tmp_path / "one", gradient_accumulation_steps=2, **options)
    machines = [
        start(
            index, arguments(data_dir, tmp_path / f"host {index}", **options),
            host=host, address=next(iter(HOSTS)), link=LINKS[index],
        )
        for index, host in enumerate(hosts)
    ]  # fmt: skip
    said = ended(*machines)
    assert [machine.returncode for machine in machines] == [0, 0], said[0][-3000:] + said[1][-3000:]
    assert "processes 2" in said[0]
    two = load_file(tmp_path / "host 0" / "run.safetensors")
    assert not (tmp_path / "host 1" / "run.safetensors").exists()  # the first machine writes
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
    assert max(tensor.abs().max() for name, tensor in one.items() if "lora_up" in name) > 1e-3


@pytest.mark.slow
def test_two_machines_shard_a_whole_model(data_dir, tmp_path, hosts):
    options = {"max_train_steps": 3, "train_batch_size": 1, "optimizer_type": "SGDNesterov", "learning_rate": 1e-2}
    train_whole("train_db", data_dir, tmp_path / "one", gradient_accumulation_steps=2, **options)
    options |= {"deepspeed": True, "zero_stage": 3}
    machines = [
        start(
            index, arguments(data_dir, tmp_path / f"host {index}", **options),
            host=host, address=next(iter(HOSTS)), link=LINKS[index], script="train_db.py",
        )
        for index, host in enumerate(hosts)
    ]  # fmt: skip
    said = ended(*machines)
    assert [machine.returncode for machine in machines] == [0, 0], said[0][-3000:] + said[1][-3000:]
    assert_alike(tmp_path / "host 0", tmp_path / "one", {"unet", "text_encoder"})


@pytest.mark.slow
def test_machines_with_disks_of_their_own_fill_caches_of_their_own(tmp_path):
    """The same paths lead to other folders, as on machines that share nothing."""
    options = {"train_batch_size": 1, "cache_latents_to_disk": True, "max_train_steps": 4}
    options |= {"cache_text_encoder_outputs_to_disk": True, "network_train_unet_only": True}
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        copy_images(folder / "images", count=4)
    argv = arguments(Path("images"), Path("output"), **options)
    machines = [start(index, argv, folder=folder) for index, folder in enumerate(folders)]
    said = ended(*machines)
    assert [machine.returncode for machine in machines] == [0, 0], said[0][-3000:] + said[1][-3000:]
    for folder in folders:
        assert len(list(folder.rglob("*_sd.npz"))) == len(list(folder.rglob("*_sd_te.npz"))) == 4


DIFFERENCES = {
    "images": "the processes have different images",
    "folders": "the processes have the images under different paths",
    "state": "the processes would start after different steps: 0, 2",
    "options": "the processes have different options: --max_train_steps, --max_grad_norm",
}


@pytest.mark.slow
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_machines_that_would_go_different_ways_end_with_the_reason(data_dir, tmp_path, difference):
    folders = [tmp_path / "0", tmp_path / "1"]
    options = [{"max_train_steps": 4, "resume": "auto"} for _ in folders]
    images = [data_dir, data_dir]
    if difference == "images":
        images[1] = copy_images(tmp_path / "others", count=4)
    elif difference == "folders":
        images[1] = copy_images(tmp_path / "others")
    elif difference == "state":
        train(data_dir, folders[0], max_train_steps=2, save_state=True)
    else:
        options[1] |= {"max_train_steps": 6, "max_grad_norm": 0.5}
    commands = zip(images, folders, options, strict=True)
    machines = [start(index, arguments(data, out, **own)) for index, (data, out, own) in enumerate(commands)]
    said = ended(*machines)
    assert all(machine.returncode for machine in machines)
    for text in said:
        assert DIFFERENCES[difference] in text[text.rindex("Root Cause") :], text[-3000:]
