"""The sentences of the report that do not depend on a run."""

COMPARISONS = (
    "{count} comparisons were made, the parts of the held-out split and the tasks included. Minus "
    "says what a line is compared with: the baseline's order under the same learning rate and with "
    "the same kind of weights, where there is one. ± docs is one standard error over the "
    "held-out documents, compared one by one."
)
FOREST = (
    "Bits per byte minus those of the line compared with; left of zero is better. Bars: 95% t "
    "interval over seeds. Ticks: single seeds."
)
FORGOTTEN = (
    "Held-out loss in nats per token on each quadrant, lowest among the kept checkpoints and at "
    "the end. What lies between was known once and is not any more. Of the first seed."
)
TRAINING_ROWS = (
    "Final weights on the same training rows, minus {baseline} on those rows, by when the order "
    "trained on them; mean over seeds. Below zero the order knows rows of that time better than "
    "{baseline} does."
)
BOUNDARIES = (
    "Means over {window:.0%} of the run on both sides of where the stage begins, at most a quarter "
    "of the stage. An update is the change of all weights in one step."
)
REACHING = (
    "The step at which an order's held-out loss comes down to the final one of {baseline} under "
    "the same seed, on the straight line between two kept checkpoints; a dash where it never does. "
    "The last column adds the FLOPs of both reference models and of scoring."
)
LOSS = (
    "Bold: the mean over {smooth:.0%} of the run. Shaded: the stages of {arm}. Drag to move; zoom "
    "with the buttons, or with shift and the wheel; double-click to reset. The steep beginning is "
    "above the upper edge."
)
DROPS = (
    "The two drops differ because they measure different texts. The training loss is that of "
    "whatever the stage feeds the model, so it falls when an easier stage begins and rises when a "
    "harder one does, whether or not the model has become better. The held-out documents are the "
    "same mixture for every order and at every step: only their loss can compare orders."
)
DROPS_WINDOWS = (
    "Training losses are means over {window:.0%} of the run, {gap:.0%} of it off the boundary, "
    "where stages mix; before the first stage stands the loss of the very first step. Held-out "
    "losses are those of the last kept checkpoint before the stage begins, the initial weights for "
    "the first one, and of the next one kept. A positive drop is a fall."
)
HELD_OUT = (
    "Every order is measured on the same held-out documents, none of which was trained on. They "
    "belong to quadrants by the same thresholds as the training documents."
)
AVERAGE = " Measured are the moving averages of the weights, not the weights."
HELD_OUT_TABLE = "Nats per token at the end of training, bits per byte in brackets; lowest in bold."
DIFFERENCE = "Below zero is better than the {baseline} order at the same number of tokens."
ANSWERS = (
    "Surprise at the right answers, in bits over the UTF-8 bytes of the answer's text, ± one "
    "standard error over the questions; lowest in bold. Small models show a difference here long "
    "before they answer more questions right than a guess would."
)
TASKS = (
    "Percent of the questions answered right, ± one standard error over the questions: the answer "
    "given is the choice with the largest log-likelihood or, in brackets, with the largest "
    "log-likelihood a byte. A blind rule reads no question: it takes always the same place or "
    "always the longest choice. Bold is more than two standard errors above a guess and the best "
    "such rule; ○ is within two of a guess, where an accuracy says nothing. Orders share the "
    "questions, so their errors are not independent; and none covers the seed of a training run."
)
TASK_CURVES = "Accuracy at the ends of stages, ± one standard error. Dashed: a guess."
REPEATS = (
    "Text tokens of the training documents, and how often an epoch reads them (partition.mixture). "
    "Which are read once more is drawn by document, so shares are met as closely as chance does."
)
RELIABILITY = (
    "How a sample of documents fares under the reference models at half of their training, or "
    "under replicas of another seed: Spearman's correlation of PPL and of PD (interval of 95%), "
    "and the share of tokens that stay in their quadrant, their PPL bin and their PD bin (and what "
    "chance would leave there). Where PD correlates at r, what an order by it can do is about "
    "sqrt(r) of what it could."
)
MIXTURE = "Share of each quadrant in the rows of the batches."
DENSITY = (
    "Training tokens by the perplexity (PPL) of the {model} reference model and the relative "
    "perplexity difference (PD) of the two; darker cells"
)
DENSITY_ELSEWHERE = (
    "Training tokens by {ppl} and {pd}, numbers made elsewhere (scoring.table), in the places of "
    "perplexity and perplexity difference: no reference model has scored these documents. Darker "
    "cells"
)
DENSITY_TILES = (
    " (in dark mode brighter ones) hold more, on a logarithmic scale. Lines: thresholds between "
    "quadrants. Documents beyond the axes are counted in the outermost cells."
)
BALANCE = "Training tokens of each group."
EXAMPLES = (
    "The beginnings of training documents, chosen by a hash of their ids, one from each group "
    "before a second from any."
)
SPEED = (
    "Speed is that of the median step; model FLOP / s follow from it: matrix products of a forward "
    "and a backward pass, attention counted for its causal half, recomputation not counted. MFU is "
    "their share of the data sheet's bfloat16 peak, and a dash where the device's peak is not "
    "known to this program. Goodput is the share of training time spent in steps, the rest "
    "being compilation and checkpoints; steps that an interruption undid are not in it. The loss "
    "is the mean over the last 5% of the steps."
)
