"""The order of the modules, the homes of the libraries, and the size of things: read with ast, function bodies included."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "onepiece_comp"

ORDER = """
    errors presets config config_ranges config_reading artefacts columns paths console heap report_html svg_drawings
    pickle_opcodes pickles pickle_stream formats identity ann_files truths embeddings vector_kernels vector_blocks reduction features blocks number_kernels line_kernels sequences item_records parquet_tables parquet_release log_source raw_folder parquet_writer world impressions observables oracle synthetic log_files log_tables log_features log_times event_log log_actions
    log_kuairand log_recbole log_movielens log_amazon log_sequences log_table convert targets split
    metrics calibration full_ranking trend event_columns engine embedding_tables preprocess evaluation baselines scoring interactions benchmark_baselines benchmark_rows benchmark_pairs
    log_figures log_warnings log_sections artefact_sections protocol_figures log_description describe
    word_search kmeans quantisers free_ids assignment collisions item_vectors semantic_ids id_figures learned_quantisers alignment tokenizer tokenizer_report
    scaling_fit scaling_sections run_sections item_sections report
    histories prefix_table popularity batches losses hstu target_attention target_ranker transformer similarity moe encoder_layer latent_steps item_tower history_inputs sid_decoder
    model arithmetic row_optim optim parallel table_shards weights checkpoint retrieval validation run_log end_asked log_window training_loop training
    beam
    next_item_blocks next_item_model next_item_losses weight_average epoch_state next_item_training next_item_codes next_item_ranking trained_rows benchmark_sections benchmark_report benchmark
    vector_cache candidates approximate request filling reranking conditioned cascade answer_parts submission past_lists ranker_training ann_export
    flow ablation scaling_plan scaling job_cache platform_jobs upload sandbox rehearsal pack plan doctor command_options data_commands model_commands platform_commands study_commands cli __main__
""".split()

OTHER_LOGS = set(ORDER[ORDER.index("log_files"):ORDER.index("convert")])
HOMES = {
    "typer": {"command_options", "data_commands", "model_commands", "platform_commands", "study_commands", "cli"}, "matplotlib": {"report_html"}, "yaml": {"config_reading"}, "rich": {"console"}, "faiss": {"word_search", "quantisers", "approximate"},
    "pandas": OTHER_LOGS, "pyarrow": OTHER_LOGS | {"embeddings", "vector_blocks", "parquet_tables", "parquet_release", "parquet_writer"}, "pickle": {"pickles", "weights", "pickle_stream"}, "distributed": {"engine"}, "numba": {"pickle_opcodes", "number_kernels", "line_kernels", "vector_kernels", "assignment"},
    "torch": set(ORDER[ORDER.index("histories"):]) - {"flow", "job_cache", "platform_jobs", "upload", "sandbox", "rehearsal", "pack", "command_options", "data_commands", "model_commands", "platform_commands", "study_commands", "cli"} | {"learned_quantisers", "alignment", "word_search"},
}
LONGEST_FILE, LONGEST_FUNCTION = 335, 60


def _modules():
    return sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def _tree(path):
    return ast.parse(path.read_text("utf-8"))


def _imports(path):
    """(top-level package, module of ours or None) of every import, wherever it stands."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], (alias.name.split(".")[1] if alias.name.startswith("onepiece_comp.") else None)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            package, _, module = node.module.partition(".")
            names = [module] if module else [alias.name for alias in node.names if alias.name != "__version__"]
            for name in names if package == "onepiece_comp" else [None]:
                yield package, name


def test_every_module_has_its_place_in_the_order():
    assert [path.stem for path in _modules()] == sorted(ORDER)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_a_module_imports_only_what_stands_before_it(path):
    place = ORDER.index(path.stem)
    later = [name for package, name in _imports(path) if package == "onepiece_comp" and ORDER.index(name) >= place]
    assert not later


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_each_library_stays_in_its_home(path):
    strangers = [package for package, _ in _imports(path) if package in HOMES and path.stem not in HOMES[package]]
    assert not strangers


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_only_paths_reads_the_environment(path):
    names = {node.attr for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute)}
    assert path.stem == "paths" or not names & {"environ", "getenv"}


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_files_and_functions_stay_readable_and_errors_are_named(path):
    tree = _tree(path)
    assert ast.get_docstring(tree) and len(ast.get_docstring(tree).splitlines()) <= 12
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None and getattr(node.type, "id", "") not in ("Exception", "BaseException"), node.lineno
