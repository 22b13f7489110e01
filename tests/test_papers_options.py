"""Options of `examples.papers` that are refused."""

import re
from typing import Any

import papers_files
import pytest

from examples.papers.__main__ import main


@pytest.fixture(scope="module")
def domainnet(tmp_path_factory):
    root = tmp_path_factory.mktemp("domainnet")
    papers_files.write_domainnet(root)
    return root


REFUSALS = {
    "no data": ({"data": "{tmp}/typo"}, "`--data .*typo` cannot be used: .*put DomainNet's split"),
    "no weights": ({"weights": "{tmp}/typo.safetensors"}, "typo.safetensors cannot be read"),
    "batch": ({"batch": 12}, "`--batch` is 12, which 8 devices cannot divide: use a multiple of 8"),
    "too large a batch": ({"batch": 96}, "there are 88 images for batches of 96"),
    "epochs": ({"epochs": 0}, "`--epochs` must be 1 or more; got 0"),
    "rate": ({"learning_rate": 0}, "`--learning-rate` must be above 0; got 0.0"),
    "NaN": ({"weight_decay": "nan"}, "`--weight-decay` must be 0 or more; got nan"),
    "strength": ({"method": "finetune", "strength": 1}, "means nothing to 'finetune'"),
    "k": ({"strength": 2}, r"`--strength` of ftp must be in \[0, 1\]; got 2.0"),
    "as published": ({"as_published": True}, "`--as-published` is about TPGM's radii"),
    "no probe": ({"method": "lpft", "probe_epochs": 0}, "give `--probe-epochs` 1 or more"),
    "half a cluster": ({"process": 1}, "give all three, or `--distributed` alone"),
    "method": ({"method": "fpt"}, "invalid choice: 'fpt'"),
}


@pytest.mark.parametrize(("options", "message"), REFUSALS.values(), ids=REFUSALS)
def test_bad_options_are_refused(options, message, domainnet, tmp_path, capsys):
    given: dict[str, Any] = {
        "method": "ftp",
        "model": "resnet50",
        "percent": 10,
        "batch": 8,
        "data": domainnet,
        "weights": tmp_path / "missing.safetensors",
        "output": tmp_path / "out",
    }
    given |= options
    words = ["domainnet"]
    for name, value in given.items():
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else [str(value).format(tmp=tmp_path)]
    with pytest.raises(SystemExit):
        main(words, papers_files.RESNET)
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
