from pathlib import Path

import pytest

from mlx_steer.model.fingerprint import weights_fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"second" * 100)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_it_is_64_hex_digits_and_the_same_for_the_same_weights(folder: Path) -> None:
    value = weights_fingerprint(folder)
    assert len(value) == 64 and int(value, 16) >= 0
    assert weights_fingerprint(folder) == value


def test_it_depends_on_content_size_and_name_of_every_weight_file(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))
    seen = {weights_fingerprint(folder)}
    second.write_bytes(b"secone" * 100)
    seen.add(weights_fingerprint(folder))
    second.write_bytes(b"secone" * 101)
    seen.add(weights_fingerprint(folder))
    second.rename(folder / "model-2.safetensors")
    seen.add(weights_fingerprint(folder))
    first.unlink()
    seen.add(weights_fingerprint(folder))
    assert len(seen) == 5


def test_other_files_do_not_matter(folder: Path) -> None:
    value = weights_fingerprint(folder)
    (folder / "config.json").write_text('{"changed": true}')
    (folder / "optimizer.safetensors").write_bytes(b"x")
    assert weights_fingerprint(folder) == value


def test_an_adapter_is_part_of_it(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    adapter = tmp_path_factory.mktemp("adapter")
    (adapter / "adapter_config.json").write_text('{"lora_parameters": {"scale": 1.0}}')
    (adapter / "adapters.safetensors").write_bytes(b"one")
    with_one = weights_fingerprint(folder, adapter)
    (adapter / "adapters.safetensors").write_bytes(b"two")
    assert len({weights_fingerprint(folder), with_one, weights_fingerprint(folder, adapter)}) == 3


def test_of_a_large_file_the_beginning_the_end_and_blocks_all_over_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    size = 40 * 2**20
    with path.open("wb") as file:
        file.truncate(size)
    seen = {weights_fingerprint(tmp_path)}
    spots = [0, size - 1, *range(2**17, size, 5 * 2**20 // 2)]
    for i, spot in enumerate(spots):
        with path.open("r+b") as file:
            # Changed throughout a stretch, as fine-tuning changes a tensor.
            file.seek(spot)
            file.write(bytes([i + 1]) * min(3 * 2**20, size - spot))
        seen.add(weights_fingerprint(tmp_path))
    assert len(seen) == len(spots) + 1
