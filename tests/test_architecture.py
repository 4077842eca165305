"""The order of the rooms and of the modules in each, the homes of the libraries, and the size of things:
read with ast.
"""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "onepiece_comp"

# A folder imports only folders above it, a module only modules before it; the root's files stand above all folders.
ROOMS = {
    "": """
        config console errors artefacts cli __main__ columns config_ranges environment presets config_reading""",
    "logs": """
        embedding_kernels json_kernels pickles embeddings formats identity features pickle_stream
        embedding_blocks raw_folder truths user_blocks json_lines parquet_tables release open_log release_writer""",
    "converters": """
        feature_tables files event_log actions tables times amazon kuairand movielens recbole sequences table
        convert""",
    "world": """arrays impressions observables oracle synthesize""",
    "dataset": """
        event_columns popularity_counts reduction embedding_tables preprocess evaluation_folder targets split""",
    "evaluation": """baselines calibration metrics score""",
    "tokenizer": """
        assignment item_vectors folder nearest_words kmeans quantisers align id_tree collisions figures rqvae
        build""",
    "models": """
        declared histories hstu prefix_table popularity batch item_tower history_inputs losses moe similarity
        sid_decoder target_attention ranker transformer encoder recommender retrieval""",
    "training": """
        arithmetic batches devices process run_log table_optimiser optimisers table_shards validation weights
        checkpoint loop train""",
    "funnel": """
        answer_parts beam vector_cache candidates index users conditioned filling rerank cascade infer""",
    "ranking": """past_lists train""",
    "reports": """
        log_figures log_warnings evaluation_figures page drawings log_sections artefact_sections describe
        run_sections item_sections""",
    "stages": """
        alone baselines build_tokenizer convert infer preprocess score split synthesize train train_ranker run""",
    "benchmark": """
        full_ranking interactions baselines next_item_blocks next_item_losses pairs rows next_item_model
        sections report weight_average epoch_state next_item_training next_item_codes next_item_ranking
        trained_rows run""",
    "studies": """ablation laws scaling_plan scaling_sections report scaling tokenizer_report""",
    "container": """ann_files ann_export job_cache jobs plan sandbox doctor upload rehearse pack""",
    "commands": """options container data model studies""",
}
LAST = ("cli", "__main__")  # of the root's files, they stand below all
HOMES = {
    "typer": {"commands", "cli"}, "yaml": {"config_reading"}, "rich": {"console"}, "matplotlib": {"reports.page"},
    "faiss": {"tokenizer.nearest_words", "tokenizer.quantisers", "funnel.index"},
    "pandas": {"converters"}, "pyarrow": {"converters", "logs"}, "distributed": {"dataset.event_columns"},
    "pickle": {"logs.pickles", "logs.pickle_stream", "training.weights"},
    "numba": {"logs.pickles", "logs.json_kernels", "logs.embedding_kernels", "tokenizer.assignment"},
    "torch": {"models", "training", "funnel", "ranking", "benchmark", "studies", "stages", "container",
              "tokenizer.nearest_words", "tokenizer.rqvae", "tokenizer.align"},
}
WITHOUT_TORCH = {"stages.convert", "stages.synthesize", "stages.split", "stages.preprocess", "stages.baselines",
                 "stages.score",
                 "container.job_cache", "container.upload", "container.sandbox", "container.rehearse", "container.pack"}
LONGEST_FILE, LONGEST_FUNCTION, WIDEST_LINE = 450, 60, 120


def _modules() -> dict[str, Path]:
    """Dotted name within the package -> file; a folder's own file is left out."""
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: path for name, path in names.items() if not name.endswith("__init__")}


MODULES = _modules()
ORDER = [f"{room}.{name}" if room else name for room, names in ROOMS.items() for name in names.split()]
ORDER = [name for name in ORDER if name not in LAST] + list(LAST)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _imports(path: Path):
    """(top-level package, module of ours or None) of every import, wherever it stands."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], alias.name.partition(".")[2] or None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            package, _, module = node.module.partition(".")
            if package != "onepiece_comp":
                yield package, None
                continue
            for name in (alias.name for alias in node.names):
                inner = f"{module}.{name}" if module else name
                found = inner if inner in MODULES else module
                if found:
                    yield package, found


def _of(names: set[str], module: str) -> bool:
    return module in names or module.partition(".")[0] in names


def test_every_module_has_its_place_in_the_order():
    assert sorted(MODULES) == sorted(ORDER)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_stands_before_it(name):
    later = [other for package, other in _imports(MODULES[name])
             if package == "onepiece_comp" and ORDER.index(other) >= ORDER.index(name)]
    assert not later


@pytest.mark.parametrize("name", MODULES)
def test_each_library_stays_in_its_home(name):
    strangers = [package for package, _ in _imports(MODULES[name]) if package in HOMES and not _of(HOMES[package],
        name)]
    assert (not strangers
            and not (name in WITHOUT_TORCH and "torch" in [package for package, _ in _imports(MODULES[name])]))


@pytest.mark.parametrize("name", MODULES)
def test_only_the_environment_is_read_in_one_place(name):
    attributes = {node.attr for node in ast.walk(_tree(MODULES[name])) if isinstance(node, ast.Attribute)}
    assert name == "environment" or not attributes & {"environ", "getenv"}


@pytest.mark.parametrize("room", [room for room in ROOMS if room])
def test_a_room_says_what_comes_in_and_goes_out_and_imports_nothing(room):
    tree = _tree(PACKAGE / room / "__init__.py")
    assert len(tree.body) == 1 and re.search(r"\nIn: .*Out: ", ast.get_docstring(tree), re.S)


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_readable_and_errors_are_named(name):
    text = MODULES[name].read_text("utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    assert ast.get_docstring(tree) and len(ast.get_docstring(tree).splitlines()) <= 12
    assert len(lines) <= LONGEST_FILE and max(map(len, lines)) <= WIDEST_LINE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None and getattr(node.type, "id", "") not in ("Exception",
                "BaseException"), node.lineno


def test_scripts_and_tests_have_no_wide_lines_but_for_the_sentences_of_a_page():
    files = [path for folder in ("tests", "benchmarks") for path in (PACKAGE.parent / folder).rglob("*.py")]
    wide = [f"{path.name}:{number}" for path in files if path.name != "public_tables.py"
            for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1) if len(line) > WIDEST_LINE]
    assert len(files) > 100 and not wide


def drawing() -> str:
    """The arrows of docs/architecture.md: each folder with those that it imports, the root left out."""
    used: dict[str, set[str]] = {room: set() for room in ROOMS if room}
    for name, path in MODULES.items():
        room = name.rpartition(".")[0]
        used[room] = used.get(room, set()) | {other.partition(".")[0] for package, other in _imports(path)
                                              if package == "onepiece_comp" and "." in other} - {room}
    rooms = [room for room in ROOMS if room]
    return "\n".join(f"    {room:<11} <- {', '.join(sorted(used[room], key=rooms.index)) or 'the root'}"
                     for room in rooms)


def test_the_drawing_of_the_house_is_true():
    assert drawing() in (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")


def test_a_public_name_stands_for_one_thing():
    """Classes and functions of modules; commands are named as the stages that they call,
    `benchmark` waits to be dissolved.
    """
    places: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in _tree(path).body if not name.startswith(("commands.", "benchmark.")) else ():
            if isinstance(node, (ast.ClassDef,
                                 ast.FunctionDef)) and not node.name.startswith("_") and node.name != "main":
                places.setdefault(node.name, []).append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_a_file_that_a_sentence_names_is_there():
    """Python files in backticks, in documents, comments, docstrings and help texts."""
    root = PACKAGE.parent
    there = {"/" + path.relative_to(root).as_posix() for folder in (PACKAGE, root / "tests", root / "benchmarks")
             for path in folder.rglob("*.py")} | {"/train.py", "/infer.py"}
    there.add("/onepiece_comp.py")  # the finder of a flat package, which `pack --flat` writes
    texts = [root / "README.md", *(path for folder in ("docs", "onepiece_comp", "tests", "benchmarks")
                                   for path in (root / folder).rglob("*.*") if path.suffix in (".py", ".md"))]
    named = [(path.name, name) for path in texts for name in re.findall(r"`([\w/]+\.py)`", path.read_text("utf-8"))]
    gone = [(text, name) for text, name in named if not any(file.endswith("/" + name) for file in there)]
    assert len(named) > 50 and not gone
