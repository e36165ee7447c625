"""The configuration: defaults, overrides, errors that help, and what enters a hash."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_ray.config import (
    ConfigError,
    MasksConfig,
    RunConfig,
    load_recipe,
    refuse_unread,
    section_hash,
    to_yaml,
)
from pmm_ray.config.keys import known_keys


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: test\nmasks:\n  alpha: 5\n")
    return path


def test_settings_override_the_file_and_nest(recipe: Path) -> None:
    config = load_recipe(recipe, ["masks.crf.iterations=3", "cams.scales=[1, 2]", "seed=7"])
    assert config.masks.alpha == 5
    assert config.masks.crf.iterations == 3
    assert config.cams.scales == (1.0, 2.0)
    assert config.seed == 7


def test_unknown_key_names_the_nearest(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key masks\.alfa; did you mean masks\.alpha\?"):
        load_recipe(recipe, ["masks.alfa=3"])
    with pytest.raises(ConfigError, match=r"did you mean segmenter\.crop_size"):
        load_recipe(recipe, ["segmenter.cropsize=3"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("masks.alpha=-1", r"masks\.alpha = -1: .*greater than 0"),
        ("masks.crf.bilateral_weight=3e38", r"bilateral_weight = .*less than or equal"),
        ("masks.alpha", "write it as section.key=value"),
        ("masks.alpha.x=1", "alpha is a value, not a section"),
        ("masks.alpha=[", "not valid YAML"),
        ("data.held_out_split=train", "must differ"),
        ("classifier.resize_long=[90, 40]", r"resize_long = \[90, 40\]: .*low <= high"),
        ("segmenter.resize_ratio=[0, 1]", "0 < low"),
        ("cams.scales=[]", r"cams\.scales"),
        ("cams.actors=0", r"cams\.actors"),
        ("classifier.backbone=scalnet101", r"did you mean scalenet101\? known are efficientnet"),
        ("segmenter.backbone=my_nets", r"unknown backbone 'my_nets'; known are"),
        ("affinity.backbone=my-nets:TINY", "unknown backbone"),
        ("segmenter.batch_size=5", r"5 images of one pass .* no whole number of groups"),
        ("ablate.backbones=[resnet83]", r"did you mean resnet38\?"),
        ("ablate.weights={resnet83: none}", r"did you mean resnet38\?"),
        ("ablate.scales=2026-02-30", r"not valid YAML: line 1: 2026-02-30: day is out of .*quotes"),
        ("masks={alpha: 3, alpha: 4}", r"line 1: 'alpha' is there already, in line 1"),
        ("cams.crops.stride=500", r"cams\.crops = .*stride 500 is larger than size 448"),
        ("multicrop.crops.size=200", "stride 300 is larger than size 200"),
        ("predict.stride=513", "stride 513 is larger than crop_size 512"),
        ("masks.alpha=.inf", r"masks\.alpha = inf: Input should be a finite number"),
        ("classifier.learning_rate=.inf", r"learning_rate = inf: Input should be a finite"),
        ("segmenter.resize_ratio=[0.5, .inf]", "finite number"),
        ("masks.alpha=x", r"^--set: masks\.alpha = 'x': Input should be a valid number"),
        ("segmenter.lr=1", r"^--set: unknown key segmenter\.lr; segmenter has .*learning_rate"),
        ("predict.scales=[1]", r"predict has .*ratios"),
        ("masks.iterations=1", r"did you mean masks\.crf\.iterations\?"),
        ("alpha=1", r"did you mean base\.alpha or affinity\.walk\.alpha or masks\.alpha\?"),
        ("maskss.alpha=1", r"^--set: unknown key maskss; did you mean masks\?"),
        ("cycles=2", r"cycles = 2: cycles is a section: write `cycles: \{rounds: \.\.\.\}`"),
        ("masks.crf=2", r"write `masks: \{crf: \{iterations: \.\.\.\}\}`"),
        ("errors.budget=no", r"errors\.budget = False: a number, not yes or no"),
        ("cycles.stop_when=off", "a number, not yes or no"),
        ("runtime.cpus=yes", "a number, not yes or no"),
        ("masks.alpha=true", "a number, not yes or no"),
        ("runtime.autoscaled_nodes=[{gpus: 1}]", r"autoscaled_nodes\.cpus = .*Field required"),
        ("seed=99999999999999999999", r"seed = .*less than or equal"),
    ],
)
def test_bad_settings_are_explained(recipe: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe, [setting])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "name: 2026-02-30\n"])
def test_bad_files_are_explained(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_section_that_is_written_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("masks: {alpha: 3}\nseed: 1\nmasks: {smoothing: 0.1}\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml.*line 3: 'masks' is .* in line 1"):
        load_recipe(path)


def test_a_key_beside_what_it_takes_over_is_not_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("base: &base {alpha: 3}\nmasks: &masks {<<: *base, alpha: 4}\n")
    assert load_recipe(path).masks.alpha == 4


def test_configuration_is_frozen_and_round_trips(recipe: Path, tmp_path: Path) -> None:
    config = load_recipe(recipe)
    with pytest.raises(ValueError, match="frozen"):
        config.masks.alpha = 3  # type: ignore[misc]
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_recipe(again) == config


def test_execution_fields_do_not_enter_the_hash() -> None:
    base = MasksConfig()
    assert section_hash(base) == section_hash(MasksConfig(tasks=7, batch_size=3))
    assert section_hash(base) != section_hash(MasksConfig(alpha=3))
    nested = base.model_copy(update={"crf": base.crf.model_copy(update={"iterations": 1})})
    assert section_hash(base) != section_hash(nested)


def test_every_field_is_documented() -> None:
    def undocumented(model: type, prefix: str = "") -> list[str]:
        out = []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            section = isinstance(field.annotation, type) and hasattr(
                field.annotation, "model_fields"
            )
            if section:
                out += undocumented(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                out.append(prefix + name)
        return out

    assert undocumented(RunConfig) == []
    assert "masks.crf.iterations" in set(known_keys())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "masks.alpha: 3\n",
            r"write it as `masks: \{alpha: \.\.\.\}`: keys with dots are for --set",
        ),
        ("masks: {crf.iterations: 3}\n", r"write it as `masks: \{crf: \{iterations: \.\.\.\}\}`"),
        ("masks:\nalpha: 3\n", r"unknown key alpha; did you mean .*masks\.alpha\?"),
        ("affinity: no\n", "affinity is a section"),
        ("data: {train_split: 1}\n", "valid string: put it in quotes"),
        ("[]\n", "expected sections"),
    ],
)
def test_what_a_recipe_cannot_have_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"recipe\.yaml: .*{message}"):
        load_recipe(path)


def test_a_mistake_is_named_where_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("masks: {alpha: z}\n")
    with pytest.raises(
        ConfigError, match=r"^.*recipe\.yaml: masks\.alpha = 'z'.*; --set: base\.al"
    ):
        load_recipe(path, ["base.alpha=x"])


@pytest.mark.parametrize("text", ["masks:\n", "masks:\n  # alpha: 3\n", "masks: {crf: }\n", ""])
def test_a_section_without_keys_has_its_defaults(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert load_recipe(path) == RunConfig()
    assert load_recipe(path, ["masks.crf.iterations=3"]).masks.crf.iterations == 3


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("data.root=/data/x #1", "/data/x #1"),
        ("data.root=/data/x: y", "/data/x: y"),
        ("data.root=2012", "2012"),
        ("data.root=2026-01-01", "2026-01-01"),
        ("data.root='2012'", "2012"),
        ("data.root=", ""),
        (" data . root = no ", "no"),
    ],
)
def test_text_is_taken_as_it_stands(setting: str, read: str) -> None:
    assert load_recipe(None, [setting]).data.root == read


@pytest.mark.parametrize("nothing", ["", "null", "~"])
def test_a_key_that_may_be_empty_can_be_emptied(tmp_path: Path, nothing: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("runtime: {scratch: /fast}\n")
    assert load_recipe(path, [f"runtime.scratch={nothing}"]).runtime.scratch is None


def test_a_section_given_whole_keeps_its_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("masks: {alpha: 5, crf: {iterations: 3}}\nruntime: {cpu_labels: {a: b}}\n")
    settings = ["masks={smoothing: 0.1, crf: {bilateral_weight: 2}}", "runtime.cpu_labels={c: d}"]
    config = load_recipe(path, settings)
    masks = config.masks
    assert (masks.alpha, masks.smoothing) == (5, 0.1)
    assert (masks.crf.iterations, masks.crf.bilateral_weight) == (3, 2)
    assert config.runtime.cpu_labels == {"c": "d"}


@pytest.mark.parametrize("key", ["masks.alpha", "masks", "masks.crf.iterations", "data.max_pixels"])
def test_what_a_command_reads_may_be_set(key: str) -> None:
    refuse_unread([f"{key}=1"], "pmm masks", ("masks", "data.max_pixels"))


@pytest.mark.parametrize("key", ["predict.crf.iterations", "data.root", "seed", "mask"])
def test_what_a_command_would_pass_over_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"--set {key}=1: pmm masks reads masks, data"):
        refuse_unread([f"{key}=1"], "pmm masks", ("masks", "data.max_pixels"))
