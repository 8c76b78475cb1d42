"""What a guess is trained for: losses of one position, and the weights of the positions of a block.

Let p be the target's law of a token and q the drafter's. One guess drawn from q is accepted with
probability ``alpha = sum_x min(p(x), q(x))`` (Leviathan et al. 2023, arXiv:2211.17192), so that
``1 - alpha``, the total variation distance, is the exact objective of a single guess at the
temperature of the logits. It hardly has a gradient where alpha is small; the others do.

Every loss takes the teacher's logits [..., V] and the student's [..., V_d], float32, and returns
[...] in nats (or a probability). No gradient flows to the teacher. Where the student speaks a
reduced vocabulary, ``target_ids`` [V_d] names the target's id of each of its tokens. Then the
divergences compare q with p *renormalised* on that vocabulary, and the acceptance terms with p as
it is: a token that the drafter cannot propose is probability that no guess can win.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from specjax.core.types import Array


def restrict(teacher_logits: Array, target_ids: Array | None) -> Array:
    """The teacher's log probabilities of the draft's tokens, not renormalised.

    Args:
      teacher_logits: [..., V].
      target_ids: [V_d] int32; None: all of them.

    Returns:
      [..., V_d]; their exponentials sum to what the target gives to the draft's vocabulary.
    """
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits))
    return log_p if target_ids is None else log_p[..., target_ids]


def _weighted(p: Array, log_ratio: Array) -> Array:
    """``sum p * log_ratio``, where p = 0 counts nothing (nor does its gradient)."""
    inside = p > 0
    return (p * jnp.where(inside, log_ratio, 0.0)).sum(-1)


def forward_kl(
    teacher_logits: Array, student_logits: Array, target_ids: Array | None = None
) -> Array:
    """``KL(p || q)``: covers all of p (Hinton et al. 2015; for drafts arXiv:2310.08461)."""
    log_p = jax.nn.log_softmax(restrict(teacher_logits, target_ids))
    return _weighted(jnp.exp(log_p), log_p - jax.nn.log_softmax(student_logits))


def reverse_kl(
    teacher_logits: Array, student_logits: Array, target_ids: Array | None = None
) -> Array:
    """``KL(q || p)``: seeks the modes of p. Infinite where q > 0 = p."""
    log_p = jax.nn.log_softmax(restrict(teacher_logits, target_ids))
    log_q = jax.nn.log_softmax(student_logits)
    return _weighted(jnp.exp(log_q), log_q - log_p)


def log_acceptance(
    teacher_logits: Array, student_logits: Array, target_ids: Array | None = None
) -> Array:
    """``log alpha``, the log probability that one guess drawn from q is accepted."""
    log_p = restrict(teacher_logits, target_ids)
    return jax.nn.logsumexp(jnp.minimum(log_p, jax.nn.log_softmax(student_logits)), axis=-1)


def total_variation(
    teacher_logits: Array, student_logits: Array, target_ids: Array | None = None
) -> Array:
    """``1 - alpha``: the probability that one guess is rejected."""
    return -jnp.expm1(log_acceptance(teacher_logits, student_logits, target_ids))


def nla(teacher_logits: Array, student_logits: Array, target_ids: Array | None = None) -> Array:
    """``-log alpha``, negative log acceptance; cross entropy where p is a point mass.

    LK-alpha of arXiv:2602.23881. Its gradient is that of the total variation over alpha.
    """
    return -log_acceptance(teacher_logits, student_logits, target_ids)


def lk_hybrid(
    teacher_logits: Array,
    student_logits: Array,
    target_ids: Array | None = None,
    *,
    eta: float = 3.0,
) -> Array:
    """``w KL(p || q) + (1 - w) (1 - alpha)`` with ``w = exp(-eta alpha)`` (arXiv:2602.23881).

    A position that is hardly ever accepted is taught by the divergence, which always has a
    gradient; one that often is, by what counts. w carries no gradient and is per position.
    """
    alpha = jnp.exp(log_acceptance(teacher_logits, student_logits, target_ids))
    w = jnp.exp(-eta * jax.lax.stop_gradient(alpha))
    divergence = forward_kl(teacher_logits, student_logits, target_ids)
    return w * divergence + (1 - w) * (1 - alpha)


def label_log_probs(logits: Array, labels: Array) -> Array:
    """``log q(label)``: logits [..., V_d] and labels [...] int32 -> [...]."""
    # A sum over one term, whose gradient is no scatter: it joins that of the softmax in one pass.
    own = jnp.arange(logits.shape[-1]).reshape((1,) * labels.ndim + (-1,)) == labels[..., None]
    chosen = jnp.where(own, logits, 0.0).sum(-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """``-log q(label)``: logits [..., V_d] and labels [...] int32 -> [...]."""
    return -label_log_probs(logits, labels)


def decay_weights(num: int, gamma: float) -> Array:
    """``exp(-(k - 1) / gamma)`` for guesses k = 1..num, [num] (DFlash, arXiv:2602.06036).

    A later guess counts only if those before it were right.
    """
    return jnp.exp(-jnp.arange(num, dtype=jnp.float32) / gamma)


def dpace_weights(
    label_log_probs: Array, alpha: float = 0.5, counted: Array | None = None
) -> Array:
    """D-PACE (arXiv:2605.18810): what guess k adds to a smooth expected number of accepted ones.

    ``w_k = sum_(m >= k) prod_(l <= m) s_l`` with ``s_l = (1 - alpha) q_l(label_l) + alpha``; the
    gradient of the weighted cross entropy is close to that of the expected length.

    Args:
      label_log_probs: [..., K], ``log q_k(label_k)``; -inf for a label that cannot be guessed.
      alpha: how much a wrong guess lets those behind it count, in [0, 1].
      counted: [..., K] bool, the guesses that have a label; None: all. The others change no weight:
        a block that the text's end cuts off is a shorter block.

    Returns:
      [..., K], without gradient.
    """
    s = (1 - alpha) * jnp.exp(jax.lax.stop_gradient(label_log_probs)) + alpha
    if counted is not None:
        s = jnp.where(counted, s, 1.0)
    survival = jnp.cumprod(s, axis=-1)
    if counted is not None:
        survival = jnp.where(counted, survival, 0.0)
    return jnp.flip(jnp.cumsum(jnp.flip(survival, axis=-1), axis=-1), axis=-1)


DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "tv": total_variation,
    "nla": nla,
    "lk_hybrid": lk_hybrid,
}
