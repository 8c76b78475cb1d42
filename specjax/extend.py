"""All that a file of one's own needs: `from specjax.extend import ...`, and nothing else.

A method is a file. What it defines is named ``path/to/file.py:NAME`` wherever a drafter, a rule, a
family, an objective or a prompt set is named, in every script and in `specjax.generate`:

    python -m experiments.generate --drafter=mine.py:Mine:4
    python -m experiments.train_drafter --config=... --config.kind=mine.py:Mine
    python -m experiments.generate --drafter=mine.py:Mine:runs/mine/export
    python -m experiments.audit --drafter=mine.py:Mine --rule=mine.py:rule

or it registers a name (``register_drafter("mine", Mine)`` at its end), which a script knows that is
given ``--import=mine.py``.

Shape letters: B rows, T tokens fed in one call, K guesses, S slots, V vocabulary, D width, F width
of the tapped features, N heads, G key/value heads, H head width.

    A drafter       Stateless: a pytree with num_draft, and guess(tokens [S], length []) -> [K].
                    Spec: bind(target, kind) -> a bound drafter (`Drafter`: init, prefill, propose,
                    update, grow, taps, kind, num_draft). LastFeatures: those with the state [B, F].
    A network       Spec with net (`Frozen.of(module)`), net_class, objective() and
                    fresh(target, num_draft=, seed=). The module is made as net_class(config,
                    dtype=, rngs=) and has the frozen dataclass ``config``, by which it is saved.
    An objective    BaseObjective: __call__(params, batch, target, key) -> (loss, weight, sums), and
                    matches(params, batch, target) -> [B, T, K] bool.
    A rule          Rule: name, takes, law(logits [K + 1, V], proposal) -> Law; lossless = False if
                    the text is another than the target's own.
    A family        a class with read_config(raw) and make_layer, of `Decoder`, or any module with
                    __call__(tokens, cache, view=, before=, taps=) -> Pass, head and init_cache.
    A prompt set    a list of texts or of `Question`, or a function from an object to a Question.

What is handed over, with its shapes (U = P + T, P of them fed before in the same block):

    Proposal        tokens [B, K] int32 (-1: none, whatever q says there), q [B, K, V] float32, the
                    law of each guess, or None; wanted [B] or None. A rule is handed one row of it.
    Kept            tokens [B, K + 1] as they were fed, of which count [B] are committed; features
                    [B, K + 1, F] or None.
    Context         tokens [B, S], length [B], pending [B, 1], keys [B], counts, target.
    View            depth [B or 1, U] behind the cache, visible [B or 1, T, U] bool.
    Batch           tokens [B, T] int32, right-padded; supervised [B, T] bool; length [B]; begin
                    [B, T] int32 where a row has several texts, or None; view, for a pass over it.

What there is besides; `help(specjax.extend.NAME)` says more of each:

    drafters        Drafter Bound LastFeatures last_features draw draw_all count_guess onto_target
                    check_fits check_kind check_num_draft check_same_tokens Family Trial Outline
                    Sizes Misreading Sampling Counts gumbel_argmax keys
    trees           Parents trees
    rules           Law RejectionLaw Verdict VerifyKeys rejection_terms end_guesses at_guesses
                    count_leading normalise
    objectives      Objective Params Skeleton losses labelled stack_ahead states_before
    families        Decoder DecoderConfig Pass Layer Embed Vocabulary Llama LlamaLayer Qwen3
                    Qwen3Layer read_decoder_config read_windows dense_like
    layers          Attention MLP Linear RMSNorm Rope Rotation rotation attend linear lookup
                    argmax looking_back split_heads activation_dtype Placed takes_residual
    caches          Cache Block blocks Entry Full Ring Latent Recurrent empty causal
    arrays          Array pytree static one_line constrain Platform nnx Frozen
    names           register_drafter register_rule register_family register_objective
                    register_prompt_set
"""

from __future__ import annotations

# All names are handed on. There is no ``__all__``: with one, help() of this module would print the
# help of every name behind the page above. `tests/test_own_names.py` holds the page to the names.
# ruff: noqa: F401
from flax import nnx

from specjax.core import keys, trees
from specjax.core.cache import Block, Cache
from specjax.core.cache import block as blocks
from specjax.core.cache.base import Entry, empty
from specjax.core.cache.full import Full
from specjax.core.cache.latent import Latent
from specjax.core.cache.recurrent import Recurrent
from specjax.core.cache.ring import Ring
from specjax.core.family import Family
from specjax.core.noise import gumbel_argmax
from specjax.core.ops import activation_dtype, argmax, attend, linear, lookup
from specjax.core.platform import Platform
from specjax.core.sharding import constrain
from specjax.core.types import Array, Kept, Parents, Proposal, Verdict, one_line, pytree, static
from specjax.core.view import View, causal
from specjax.drafters.base import (
    Bound,
    Context,
    Drafter,
    check_fits,
    check_kind,
    check_num_draft,
)
from specjax.drafters.bases import LastFeatures, Stateless, last_features
from specjax.drafters.drawing import count_guess, draw, draw_all, onto_target
from specjax.drafters.registry import register_drafter
from specjax.drafters.spec import Misreading, Outline, Sizes, Spec, Trial
from specjax.drafters.vocabularies import check_same_tokens
from specjax.models.config import DecoderConfig, dense_like, read_decoder_config
from specjax.models.frozen import Frozen
from specjax.models.layers.attention import MLP, Attention, looking_back, split_heads
from specjax.models.layers.decoder import Decoder, Embed, Layer, Pass
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.placed import Placed
from specjax.models.layers.residual import takes_residual
from specjax.models.layers.rope import Rope, Rotation, rotation
from specjax.models.llama import Llama, LlamaLayer
from specjax.models.qwen3 import Qwen3, Qwen3Layer
from specjax.models.registry import register_family
from specjax.models.vocabulary import Vocabulary
from specjax.models.windows import read_windows
from specjax.prompts.prompt_sets import Question, register_prompt_set
from specjax.sampling import Counts, Sampling
from specjax.train import losses
from specjax.train.objectives import register_objective
from specjax.train.objectives.base import (
    BaseObjective,
    Batch,
    Objective,
    labelled,
    stack_ahead,
    states_before,
)
from specjax.train.state import Params, Skeleton
from specjax.verify import register_rule
from specjax.verify.base import (
    Law,
    RejectionLaw,
    Rule,
    VerifyKeys,
    at_guesses,
    count_leading,
    end_guesses,
    normalise,
    rejection_terms,
)
