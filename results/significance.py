"""What repetitions say: means, spreads and confidence intervals that count independent pretrainings.

Evaluation and fine-tuning seeds of one pretraining are not independent: they are averaged within it first.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

LEVEL = 0.95
PRETRAINING, FINE_TUNING, NONE = "pretraining", "fine-tuning only", "none"
"""What a spread is the spread of."""


def half_width(sd: npt.ArrayLike, n: npt.ArrayLike, level: float = LEVEL) -> npt.NDArray[np.float64]:
    """Half the confidence interval of a mean of `n` values with sample standard deviation `sd`, by Student's t.

    NaN where n < 2: one value has no interval.
    """
    from scipy.special import stdtrit

    sd, n = np.asarray(sd, float), np.asarray(n, float)
    several = n >= 2
    counted = np.where(several, n, 2)
    return np.where(several, stdtrit(counted - 1, (1 + level) / 2) * sd / np.sqrt(counted), np.nan)


def summarise(runs: pd.DataFrame, by: Sequence[str], unit: str, metrics: Sequence[str]) -> pd.DataFrame:
    """One row a group of `by`: n_pretrain, n_eval, spread_of, and <metric>_mean, _sd, _ci95 for each of `metrics`.

    `unit` names the column that tells independent pretrainings apart. The n's are those of the first metric; another
    metric that fewer runs have is left empty, because its mean would be over other runs. With one pretraining sd and
    interval are those of its evaluations, and `spread_of` says so.
    """
    by, metrics = list(by), list(metrics)
    within = runs.groupby([*by, unit])[metrics].mean()
    between, evaluations = within.groupby(level=by), runs.groupby(by)[metrics]
    n, n_eval = between.count(), evaluations.count()
    sd = between.std().where(n > 1, evaluations.std())
    width = half_width(sd, n.where(n > 1, n_eval))
    whole = n.eq(n[metrics[0]], axis=0) & n_eval.eq(n_eval[metrics[0]], axis=0)
    columns: dict[str, pd.Series] = {"n_pretrain": n[metrics[0]], "n_eval": n_eval[metrics[0]]}
    columns["spread_of"] = _spread_of(n[metrics[0]], n_eval[metrics[0]])
    mean = between.mean()
    for i, metric in enumerate(metrics):
        columns[f"{metric}_mean"] = mean[metric].where(whole[metric])
        columns[f"{metric}_sd"] = sd[metric].where(whole[metric])
        columns[f"{metric}_ci95"] = pd.Series(width[:, i], index=mean.index).where(whole[metric])
    return pd.DataFrame(columns)


def _spread_of(n: pd.Series, n_eval: pd.Series) -> pd.Series:
    return pd.Series(np.where(n > 1, PRETRAINING, np.where(n_eval > 1, FINE_TUNING, NONE)), index=n.index)
