"""What a finetuning run teaches, and what it is evaluated on."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from rich.console import Console

from smf_jax.config import AskConfig, FinetuneConfig, require
from smf_jax.data.batches import Batch, drop_long, encode_example, fits
from smf_jax.data.corpus import with_texts
from smf_jax.data.examples import taught_examples
from smf_jax.data.fact_batches import stack_facts
from smf_jax.data.prompts import PromptFormat
from smf_jax.evaluate.asking import Asking
from smf_jax.evaluate.questions import Questions, load_questions
from smf_jax.model.build import slots_with_rows
from smf_jax.optim.methods import make_method
from smf_jax.runs import Run
from smf_jax.runs.files import SLOTS, USAGE
from smf_jax.runs.load import corpus_of, find_base, require_context
from smf_jax.runs.record import lineage_of, read_record
from smf_jax.slots import document_frequency, sparse_table
from smf_jax.slots.document_frequency import Background
from smf_jax.slots.sparse_table import NO_ROWS, Rows, SlotCounts, background_of
from smf_jax.train.prefix_cache import require_room, uses_cache
from smf_jax.verbs.evaluate import asking_of, sample_texts
from smf_jax.verbs.fact_reads import own_slots, slots_read, with_facts

NO_ROW = 2**30  # larger than any row of a table


class Task(NamedTuple):
    """What is taught, and what it is evaluated on."""

    questions: Questions
    asking: Asking
    texts: list[Batch]  # rows that forgetting is measured on
    facts: list[Batch]  # the rows of each fact to teach
    batch_size: int  # facts per step
    background: Background | None  # of methods that select slots
    rows: Rows | None = None  # of a table of which only written rows exist
    reads: SlotCounts | None = None  # of these facts alone, of such a table
    added: Int[np.ndarray, " slots"] | None = None  # slots without a row in the base


def load_task(config: FinetuneConfig, base: Run, console: Console) -> Task:
    """Returns the questions, texts, rows of facts and background of a run.

    Raises:
      ConfigError: A file is missing or broken, or there is nothing to teach.
    """
    corpus = with_texts(corpus_of(base), config.keep.texts, config.fields)
    about = (config.facts, config.patterns, config.teach)
    kept = (config.fields, config.keep.facts)
    questions = load_questions(corpus, *about, console, *kept)
    require(len(questions.new) > 0, f"{config.base} held no facts back: name --facts")
    asking = asking_of(base, AskConfig(prompt=config.prompt), questions)
    usage = _usage(config, base, console)
    facts = _fact_rows(config, base, questions, asking.form, console)
    texts = sample_texts(base, corpus)
    size = _batch_size(config, facts, console)
    task = Task(questions, asking, texts, facts, size, None)
    if isinstance(usage, SlotCounts):
        return _with_rows(config, task, base, usage)
    if config.optim.select == "contrastive" and usage is not None:
        usage = with_facts(usage, base.model, facts)
    return task._replace(background=usage)


def _with_rows(
    config: FinetuneConfig, task: Task, base: Run, documents: SlotCounts
) -> Task:
    """Adds the rows that the facts may write, and those that earlier facts wrote."""
    reads = slots_read(base.model, task.facts)
    of_these = SlotCounts.of([of_fact.slots for of_fact in reads])
    earlier = earlier_rows(base)
    facts = of_these.plus(earlier.facts)
    score = make_method(config.optim, config.steps).score
    most = config.optim.per_fact.rows
    own = [of_fact.slots for of_fact in reads]
    if most is not None:
        own = own_slots(reads, documents, facts, score, most)
    slots = np.unique(np.concatenate([earlier.slots, *own])).astype(np.int32)
    batches = task.facts
    if most is not None:
        batches = [
            fact._replace(own_rows=_padded(np.searchsorted(slots, of), most, fact))
            for fact, of in zip(task.facts, own, strict=True)
        ]
    unused = base.memory.with_rows(len(slots)).table_rows - len(slots)
    every = np.pad(slots, (0, unused), constant_values=base.memory.num_slots)
    background = background_of(every, documents, facts)
    return task._replace(
        facts=batches,
        background=background,
        rows=Rows(slots, facts),
        reads=of_these,
        added=np.setdiff1d(slots, earlier.slots),
    )


def earlier_rows(base: Run) -> Rows:
    """Returns the rows of a calibrated memory that facts taught before are for.

    An import does not say what they read, and counts as one fact that read all rows.

    Raises:
      ConfigError: The file is missing or damaged.
    """
    if not base.memory.num_rows:
        return NO_ROWS
    if base.lineage.own is base.lineage.imported:
        slots = slots_with_rows(base.model)
        return Rows(slots, SlotCounts.of([slots]))
    return Rows.load(base.run_dir / SLOTS)


def _padded(rows: np.ndarray, most: int, fact: Batch) -> np.ndarray:
    """Returns the rows of a fact for each row of its batch, and ids of no row."""
    rows = np.pad(rows.astype(np.int32), (0, most - len(rows)), constant_values=NO_ROW)
    return np.broadcast_to(rows, (len(fact.tokens), most))


def _batch_size(config: FinetuneConfig, facts: list[Batch], console: Console) -> int:
    if config.batch_size <= len(facts):
        return config.batch_size
    parts = config.grad_accum_steps
    size = len(facts) // parts * parts
    require(size > 0, f"grad_accum_steps={parts} exceeds the {len(facts)} facts")
    console.print(
        f"batch_size={config.batch_size} exceeds the {len(facts)} facts: a step takes "
        f"{size}"
    )
    return size


def _fact_rows(
    config: FinetuneConfig,
    base: Run,
    questions: Questions,
    form: PromptFormat,
    console: Console,
) -> list[Batch]:
    """Returns the rows of each fact to be taught."""
    encoded = [
        [
            # A text that was completed goes on: an end that is trained after some
            # names would be expected after others.
            encode_example(
                base.tokenizer, each, config.loss_on, index, form, each.is_question
            )
            for each in taught_examples(fact, config.teach)
        ]
        for index, fact in enumerate(questions.new)
    ]
    seq_len = _seq_len(config, base)
    _, dropped = drop_long([row for rows in encoded for row in rows], seq_len)
    if dropped:
        console.print(f"data: {dropped} texts longer than the context, left out")
    encoded = [[row for row in rows if fits(row, seq_len)] for rows in encoded]
    encoded = [rows for rows in encoded if rows]
    require(len(encoded) > 0, f"no fact fits into {seq_len} tokens (seq_len)")
    facts = stack_facts(encoded, seq_len)
    if uses_cache(config, facts):
        needed = require_room(facts, base.model.config, base.model.layout)
        console.print(
            f"prefixes: outputs below the memory of {len(facts):,} facts are cached, "
            f"{needed:.2f} GiB in each process",
        )
    return facts


def _seq_len(config: FinetuneConfig, base: Run) -> int:
    data = base.lineage.data
    seq_len = config.seq_len or (data and data.seq_len)
    require(
        seq_len is not None, f"{config.base} was imported without data: name --seq-len"
    )
    require_context(seq_len, base)
    return seq_len


def _usage(
    config: FinetuneConfig, base: Run, console: Console
) -> Background | SlotCounts | None:
    """Returns what the background reads, if the method selects slots."""
    method, memory = config.optim.method, base.model.config.memory
    if method in ("full", "memory") and memory is not None:
        require(
            memory.num_rows is None,
            f"optim.method={method} trains every row of a table, but {base.run_dir} "
            "has written rows alone: use smf or lora",
        )
    if method in ("smf", "memory"):
        memory = base.memory  # raises if there is none to train
    if method != "smf":
        return None
    if memory.num_rows is not None:
        return read_usage(base)
    require(
        config.optim.per_fact.rows is None,
        f"optim.per_fact.rows={config.optim.per_fact.rows} is for a calibrated memory, "
        f"whose reads are known beforehand: for {base.run_dir} name optim.top_t",
    )
    require(
        config.optim.top_t <= memory.num_slots,
        f"optim.top_t={config.optim.top_t} exceeds the {memory.num_slots} slots of a "
        f"table (memory.num_keys={memory.num_keys}, squared)",
    )
    background = document_frequency.load(
        base.run_dir / USAGE, base.model_hash, memory.num_tables, memory.num_slots
    )
    selectable = min(document_frequency.selectable_slots(background))
    if config.optim.select in ("tfidf", "idf") and selectable < config.optim.top_t:
        console.print(
            f"WARNING: every background document reads all but {selectable:,} of "
            f"{memory.num_slots:,} slots, so no step can write optim.top_t="
            f"{config.optim.top_t} slots; see smf usage",
            style="bold red",
        )
    return background


def read_usage(base: Run) -> SlotCounts:
    """Returns what the background reads of a calibrated memory.

    Rows change no reads, so those of the run that was calibrated stay valid.

    Raises:
      ConfigError: The file is missing or damaged.
    """
    run_dir, lineage = base.run_dir, base.lineage
    while not (run_dir / USAGE).is_file() and lineage.own is lineage.finetune:
        run_dir = find_base(run_dir, lineage.own.base)
        lineage = lineage_of(read_record(run_dir))
    path = run_dir / USAGE
    require(path.is_file(), f"{path} does not exist: run `smf usage {run_dir}` first")
    return sparse_table.load(path, "usage")[0]
