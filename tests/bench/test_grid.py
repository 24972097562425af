"""A grid says what it is to find out, and a wrong one is refused in one line that names the entry."""

from collections.abc import Callable
from pathlib import Path

import pytest

from truepair.bench.cells import cells_of
from truepair.bench.checks import check_methods
from truepair.bench.grid import ORACLE, Grid, run_config
from truepair.bench.reading import find_grid, from_toml, shipped
from truepair.errors import UserError

OFF = 'noisy_options = { itm = 0.0, confidence = "itc" }'
SOFT = '[[methods]]\nname = "gate, soft"\nmethod = "gate"\noptions = { power = 0.5 }\n'
WRONG = {
    "unknown entry 'sizes'": {'corpus = "scenes"': 'corpus = "scenes"\nsizes = 3'},
    "corpus is missing": {'corpus = "scenes"\n': ""},
    "model is missing": {'model = "truepair-test"\n': ""},
    "methods is empty": {'[[methods]]\nmethod = "clip"\n': "", SOFT: ""},
    "methods should be tables": {"seeds = [0, 1]": "seeds = [0, 1]\nmethods = 3", "[[methods]]": "[[evaluate]]"},
    "rates has 1.0": {"[0.4, 0.0]": "[0.4, 1.0]"},
    "rates has '0.4'": {"[0.4, 0.0]": '["0.4"]'},
    "rates = 0.4 should be a list": {"[0.4, 0.0]": "0.4"},
    "rates has 0.4 twice": {"[0.4, 0.0]": "[0.4, 0.4]"},
    "seeds has -1": {"[0, 1]": "[-1]"},
    "seeds has 0 twice": {"[0, 1]": "[0, 0]"},
    "kinds has 'salt'": {'corpus = "scenes"': 'corpus = "scenes"\nkinds = ["salt"]'},
    "figure = 'top2'": {'corpus = "scenes"': 'corpus = "scenes"\nfigure = "top2"'},
    "unknown entry 'power'": {"options = { power = 0.5 }": "power = 0.5"},
    "unknown entry 'epoch'": {"epochs = 2": "epoch = 2"},
    "epochs = 'two' should be a int": {"epochs = 2": 'epochs = "two"'},
    "data is not set there": {"epochs = 2": 'data = "table"'},
    "seed is not set there": {"options = { power = 0.5 }": "train = { seed = 3 }"},
    "by file name, has 'gate-soft' twice": {'method = "clip"': 'name = "gate soft"\nmethod = "clip"'},
    "called like the line 'oracle filter'": {'"gate, soft"': '"oracle-filter"'},
    "called like the line 'clip, clean'": {'"gate, soft"': '"Clip clean"'},
    "called like the line 'plain clip'": {'[[methods]]\nmethod = "clip"\n': "", '"gate, soft"': '"plain-clip"'},
    "in percent as tables show them, has '33.3333' twice": {"[0.4, 0.0]": "[0.3333331, 0.3333334]"},
    "labels are for noise that nobody knows": {"seeds = [0, 1]": 'seeds = [0, 1]\nlabels = "grid.toml"'},
    "neither zeroshot nor retrieval": {
        '[[methods]]\nmethod = "clip"': '[[evaluate]]\nname = "x"\n\n[[methods]]\nmethod = "clip"'
    },
    "cannot be read": {"seeds = [0, 1]": "seeds = [0, 1"},
}


@pytest.mark.parametrize(("said", "changes"), WRONG.items(), ids=WRONG)
def test_a_wrong_grid_is_refused_in_one_line(
    said: str, changes: dict[str, str], write_grid: Callable[..., Path]
) -> None:
    with pytest.raises(UserError) as refused:
        from_toml(write_grid(changes))
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", shipped())
def test_shipped_grids_can_be_read_and_their_methods_know_their_options(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    grid = from_toml(find_grid(name))
    assert grid.name == name
    monkeypatch.setattr(open_clip, "list_models", lambda: [grid.model])  # truepair's own are known in the run
    check_methods(grid)
    assert grid.clip in grid.methods, "the lines beside the methods need plain CLIP"


def test_a_method_an_option_or_a_model_that_is_not_there_is_named(write_grid: Callable[..., Path]) -> None:
    for said, changes in {
        "no method 'gates'": {'method = "gate"': 'method = "gates"'},
        "unknown entry 'powers'": {"power = 0.5": "powers = 0.5"},
        "no model of the name": {"truepair-test": "truepair-tset"},
        "rerank needs a fusion encoder with ITM; method gate": {"power = 0.5 }": "power = 0.5 }\nrerank = 4"},
        "method never has none here": {
            'method = "gate"\noptions = { power = 0.5 }': 'method = "never"\nrerank = 4\n' + OFF
        },
    }.items():
        with pytest.raises(UserError, match=said):
            check_methods(from_toml(write_grid(changes)))
    check_methods(from_toml(write_grid()))


def test_a_row_that_re_ranks_has_a_fusion_encoder_to_ask(write_grid: Callable[..., Path]) -> None:
    check_methods(from_toml(write_grid({'method = "gate"\noptions = { power = 0.5 }': 'method = "never"\nrerank = 4'})))


def test_two_cells_never_share_their_files(grid: Grid) -> None:
    grid.methods[1].name = "oracle-filter"  # as no grid that was read can have it
    with pytest.raises(UserError, match="two different cells would be called oracle-filter-shuffle-40-0"):
        cells_of(grid)


def test_a_grid_that_is_not_there_tells_those_that_are() -> None:
    with pytest.raises(UserError, match="emoji-cpu"):
        find_grid("emoji-gpu")


def test_a_recipe_lies_below_the_grids_own_entries(write_grid: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        'model = "of-the-recipe"\nepochs = 7\nlr = 0.5\n[pairs]\ndraw = "first"\nblock = 8'
    )
    path = write_grid(
        {
            'model = "truepair-test"': 'recipe = "recipe.toml"',
            "batch_size = 32": "batch_size = 32\n[train.pairs]\nblock = 9",
        }
    )
    grid = from_toml(path)
    config = run_config(grid, grid.methods[0])
    assert (grid.model, config.epochs, config.lr, config.pairs.draw, config.pairs.block) == (
        "of-the-recipe",
        2,
        0.5,
        "first",
        9,
    )


def test_a_row_has_its_own_entries_above_the_grids(write_grid: Callable[..., Path]) -> None:
    own = 'options = { power = 0.5 }\nmodel = "larger"\ntrain = { epochs = 5, pairs = { draw = "first" } }'
    grid = from_toml(write_grid({"options = { power = 0.5 }": own}))
    plain, soft = (run_config(grid, row) for row in grid.methods)
    assert (plain.epochs, plain.pairs.draw, plain.model, plain.batch_size) == (2, "random", "truepair-test", 32)
    assert (soft.epochs, soft.pairs.draw, soft.model, soft.batch_size) == (5, "first", "larger", 32)


def test_cells_come_seed_by_seed_with_plain_clip_first(grid: Grid) -> None:
    assert [cell.name for cell in cells_of(grid)] == [
        "clip-plain-0",
        "clip-shuffle-40-0",
        "oracle-filter-shuffle-40-0",
        "gate-soft-shuffle-40-0",
        "gate-soft-plain-0",
        "clip-plain-1",
        "clip-shuffle-40-1",
        "oracle-filter-shuffle-40-1",
        "gate-soft-shuffle-40-1",
        "gate-soft-plain-1",
    ]


def test_the_reference_lines_do_not_need_a_row_or_a_rate_of_their_own(write_grid: Callable[..., Path]) -> None:
    without = {'[[methods]]\nmethod = "clip"\n': "", "[0.4, 0.0]": "[0.4]", "[0, 1]": "[3]"}
    names = [cell.name for cell in cells_of(from_toml(write_grid(without)))]
    assert names == ["plain-clip-plain-3", "gate-soft-shuffle-40-3", "oracle-filter-shuffle-40-3"]
    natural = {"[0.4, 0.0]": "[0.0]", "[0, 1]": "[3]"}
    assert [cell.name for cell in cells_of(from_toml(write_grid(natural)))] == ["clip-plain-3", "gate-soft-plain-3"]


def test_lines_rates_and_seeds_can_be_chosen_by_name(grid: Grid) -> None:
    chosen = cells_of(grid, methods=[ORACLE, "gate, soft"], rates=[0.4], seeds=[1])
    assert [cell.name for cell in chosen] == ["oracle-filter-shuffle-40-1", "gate-soft-shuffle-40-1"]
    for flag, choice in {
        "--methods": {"methods": ["gate"]},
        "--rates": {"rates": [0.3]},
        "--seeds": {"seeds": [7]},
    }.items():
        with pytest.raises(UserError, match=flag):
            cells_of(grid, **choice)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no cell of these"):
        cells_of(grid, methods=[ORACLE], rates=[0.0])


def test_several_kinds_of_noise_share_the_clean_cells(write_grid: Callable[..., Path]) -> None:
    grid = from_toml(
        write_grid({'corpus = "scenes"': 'corpus = "scenes"\nkinds = ["shuffle", "truncate"]', "[0, 1]": "[0]"})
    )
    assert grid.noises == [("shuffle", 0.4), ("truncate", 0.4), ("", 0.0)]
    names = [cell.name for cell in cells_of(grid)]
    assert len(names) == len(set(names)) == 1 + 3 + 3 + 1
