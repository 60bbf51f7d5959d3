import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.figure import Figure
from scipy import special, stats
from sklearn.metrics import recall_score
from torchmetrics import MetricCollection

from art_logits import metrics

CLASSES = 4


def batch(seed, count=40, classes=CLASSES, absent=None):
    """Adversarial logits under two attacks, clean logits and labels."""
    rng = torch.Generator().manual_seed(seed)
    present = [index for index in range(classes) if index != absent]
    target = torch.tensor(present)[torch.randint(0, len(present), (count,), generator=rng)]
    logits = torch.randn((3, count, classes), generator=rng)
    logits[:, torch.arange(count), target] += 1.5
    return logits[0], logits[1], logits[2], target


# ---- references, from other libraries --------------------------------------------------------------------


def reference_classes(first, second, clean, target):
    """Recall of a prediction that is right where all three are."""
    predictions = np.stack([each.argmax(1).numpy() for each in (first, second, clean)])
    truth = target.numpy()
    right = (predictions == truth).all(axis=0)
    merged = np.where(right, truth, (truth + 1) % CLASSES)
    return recall_score(truth, merged, labels=range(CLASSES), average=None, zero_division=np.nan)


def reference_success(first, second, clean, target):
    right = clean.argmax(1) == target
    turned = (first.argmax(1)[right] != target[right]) | (second.argmax(1)[right] != target[right])
    return turned.double().mean().item()


ACCURACIES = {
    "ClasswiseRobustAccuracy": reference_classes,
    "WorstClassRobustAccuracy": lambda *data: np.nanmin(reference_classes(*data)),
    "RobustAccuracyDisparity": lambda *data: np.ptp(
        reference_classes(*data)[~np.isnan(reference_classes(*data))]
    ),
    "TailRobustAccuracy": lambda *data: np.sort(reference_classes(*data))[:2].mean(),
    "RobustAccuracy": lambda *data: np.nansum(
        reference_classes(*data) * np.bincount(data[-1], minlength=CLASSES) / len(data[-1])
    ),
    "AttackSuccessRate": reference_success,
}
OPTIONS = {
    "ClasswiseRobustAccuracy": {"num_classes": CLASSES},
    "WorstClassRobustAccuracy": {"num_classes": CLASSES},
    "RobustAccuracyDisparity": {"num_classes": CLASSES},
    "TailRobustAccuracy": {"num_classes": CLASSES, "share": 0.5},
}
QUANTITIES = {
    "MaxLogit": lambda z, y: z.max(1),
    "LogitGap": lambda z, y: np.diff(np.sort(z, axis=1)[:, -2:], axis=1)[:, 0],
    "Margin": lambda z, y: [row[k] - np.delete(row, k).max() for row, k in zip(z, y, strict=True)],
    "Confidence": lambda z, y: special.softmax(z, axis=1).max(1),
    "Entropy": lambda z, y: stats.entropy(special.softmax(z, axis=1), axis=1),
}


def mean_of(name, logits, target, *, by_class):
    values = np.array(QUANTITIES[name](logits.double().numpy(), target.numpy()))
    if not by_class:
        return values.mean()
    labels = target.numpy()
    return [values[labels == k].mean() if (labels == k).any() else np.nan for k in range(CLASSES)]


def make(name, by_class=False, **kwargs):
    options = OPTIONS.get(name, {"num_classes": CLASSES} if by_class else {})
    return getattr(metrics, name)(**options, **kwargs)


def arguments(name, data):
    """What a metric takes of a batch: logits and labels, or two attacks, labels and clean logits."""
    first, second, clean, target = data
    return ([first, second], target, clean) if name in ACCURACIES else (first, target)


def expected(name, data, by_class):
    if name in ACCURACIES:
        return ACCURACIES[name](*data)
    return mean_of(name, data[0], data[-1], by_class=by_class)


def joined(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def check(value, reference):
    np.testing.assert_allclose(value.numpy(), reference, rtol=2e-6, atol=1e-7, equal_nan=True)


# ---- every metric against its reference ------------------------------------------------------------------

ALL = [(name, False) for name in ACCURACIES] + [(name, each) for name in QUANTITIES for each in (False, True)]


@pytest.mark.parametrize(("name", "by_class"), ALL)
def test_batches_and_accumulation(name, by_class):
    batches = [batch(seed, count, absent=2) for seed, count in enumerate((40, 7, 25))]
    metric = make(name, by_class)
    for data in batches:
        check(metric(*arguments(name, data)), expected(name, data, by_class))
    check(metric.compute(), expected(name, joined(batches), by_class))
    metric.reset()
    metric.update(*arguments(name, batches[0]))
    check(metric.compute(), expected(name, batches[0], by_class))


@pytest.mark.parametrize(("name", "by_class"), ALL)
def test_parts_of_several_processes(name, by_class):
    batches = [batch(seed, count) for seed, count in enumerate((40, 8))]
    second = make(name, by_class)
    second.update(*arguments(name, batches[1]))
    others = iter([getattr(second, state) for state in second._reductions])
    # What DDP does at compute: every state is gathered from all processes and reduced by its dist_reduce_fx.
    first = make(
        name,
        by_class,
        dist_sync_fn=lambda state, group: [state, next(others)],
        distributed_available_fn=lambda: True,
    )
    first.update(*arguments(name, batches[0]))
    check(first.compute(), expected(name, joined(batches), by_class))
    merged = make(name, by_class)
    merged.update(*arguments(name, batches[0]))
    merged.merge_state(second)
    check(merged.compute(), expected(name, joined(batches), by_class))


@pytest.mark.parametrize(("name", "by_class"), ALL)
def test_states_survive_pickling_and_state_dicts(name, by_class):
    metric, data = make(name, by_class), batch(0)
    metric.persistent(True)
    metric.update(*arguments(name, data))
    check(pickle.loads(pickle.dumps(metric)).compute(), expected(name, data, by_class))
    other = make(name, by_class)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    other._update_count = 1  # no part of a state dict; it only says that there is something to compute
    check(other.compute(), expected(name, data, by_class))


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 6))
def test_any_split_gives_the_same(seed, count, parts):
    data = batch(seed, count)
    metric = metrics.ClasswiseRobustAccuracy(CLASSES)
    for part in zip(*(each.tensor_split(parts) for each in data), strict=True):
        metric.update([part[0], part[1]], part[3], part[2])
    check(metric.compute(), reference_classes(*data))
    assert metric.support.tolist() == np.bincount(data[3], minlength=CLASSES).tolist()


# One process of a training run: a module that holds its metrics, as a LightningModule does, under DDP, on
# batches of its own. It trains for two epochs and leaves what it saw and what the metrics said.
PROCESS = """
import sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from art_logits import TemperaturePGD, metrics

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, 4)
        self.metrics = nn.ModuleDict({
            "classes": metrics.ClasswiseRobustAccuracy(4),
            "worst": metrics.WorstClassRobustAccuracy(4),
            "success": metrics.AttackSuccessRate(),
            "gap": metrics.LogitGap(),
            "margin": metrics.Margin(4),
        })

    def forward(self, inputs):
        return self.net(inputs)

def main(rank, store, out):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = DistributedDataParallel(Classifier())
    own, optimizer = model.module, torch.optim.SGD(model.parameters(), lr=0.5)
    attack = TemperaturePGD(eps=0.3, steps=2)
    generator = torch.Generator().manual_seed(rank)
    for epoch in range(2):
        seen = []
        for count in (9, 4, 6 + rank):
            inputs = torch.rand((count, 6), generator=generator)
            target = torch.randint(0, 3, (count,), generator=generator)  # class 3 is absent
            adversarial = attack(own.net, inputs, target).adv_inputs
            optimizer.zero_grad()
            logits = model(adversarial)
            nn.functional.cross_entropy(logits, target).backward()
            with torch.no_grad():
                clean = own.net(inputs)
            optimizer.step()
            for name in ("classes", "worst", "success"):
                own.metrics[name].update(logits, target, clean)
            for name in ("gap", "margin"):
                own.metrics[name].update(logits, target)
            seen.append((logits.detach(), target, clean))
        values = {name: metric.compute() for name, metric in own.metrics.items()}
        for metric in own.metrics.values():
            metric.reset()
    assert not [name for name in own.state_dict() if "metrics" in name]
    torch.save({"seen": [torch.cat(parts) for parts in zip(*seen)], "values": values}, out)
    distributed.destroy_process_group()

if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


def test_two_processes_that_train_together_have_the_values_of_one(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    outs = [tmp_path / f"{rank}.pt" for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", script, str(rank), tmp_path / "store", out],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
    first, second = (torch.load(out) for out in outs)
    logits, target, clean = joined([first["seen"], second["seen"]])
    # The last epoch alone, since the metrics were reset: 19 samples of one process, 20 of the other.
    assert len(target) == 39
    alone = metrics.ClasswiseRobustAccuracy(4)
    alone.update(logits, target, clean)
    wanted = {"classes": alone.compute(), "worst": alone.compute()[:3].min()}
    right = clean.argmax(1) == target
    wanted["success"] = (logits.argmax(1)[right] != target[right]).double().mean()
    wanted["gap"] = mean_of("LogitGap", logits, target, by_class=False)
    wanted["margin"] = mean_of("Margin", logits, target, by_class=True)
    for values in (first["values"], second["values"]):
        for name, value in values.items():
            check(value, wanted[name])
    assert math.isnan(first["values"]["classes"][3])
    assert 0 < float(first["values"]["success"]) < 1


# ---- definitions -----------------------------------------------------------------------------------------


def test_the_reports_say_the_same(random_table):
    from art_logits.records import Records

    records = Records(random_table(60, CLASSES))
    attacked = [torch.from_numpy(records.column(f"{name}.prediction").copy()) for name in records.attacks]
    target = torch.from_numpy(records.column("label").copy())
    clean = torch.from_numpy(records.column("clean_logits").copy())
    report, statistics = records.classwise(), records.logits().statistics()["model"]["clean"]
    check(metrics.ClasswiseRobustAccuracy(CLASSES)(attacked, target, clean), report.robust)
    check(metrics.RobustAccuracyDisparity(CLASSES)(attacked, target, clean), report.disparity)
    check(metrics.TailRobustAccuracy(CLASSES)(attacked, target, clean), report.tail_10)
    check(metrics.AttackSuccessRate()(attacked[0], target, clean), _overall_success(records))
    for name, quantity in (("MaxLogit", "max_logit"), ("LogitGap", "logit_gap"), ("Margin", "margin")):
        check(getattr(metrics, name)()(clean, target), statistics[quantity].mean)


def _overall_success(records):
    right = records.correct()
    return 1 - records.survives(records.attacks[0]).sum() / right.sum()


def test_three_classes_by_hand():
    # Two cats: one turned; a dog: wrong without the attack already; no frogs.
    target, clean, attacked = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1])
    accuracy = metrics.ClasswiseRobustAccuracy(3)
    check(accuracy(attacked, target, clean), [0.5, 0, math.nan])
    check(accuracy(attacked, target), [0.5, 1, math.nan])
    check(metrics.WorstClassRobustAccuracy(3)(attacked, target, clean), 0)
    check(metrics.RobustAccuracy()(attacked, target, clean), 1 / 3)
    check(metrics.AttackSuccessRate()(attacked, target, clean), 1 / 2)


@pytest.mark.parametrize(("name", "by_class"), ALL)
def test_without_samples_nothing_is_known(name, by_class):
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        value = make(name, by_class).compute()
    assert value.isnan().all()
    empty = tuple(each[:0] for each in batch(0))
    assert make(name, by_class)(*arguments(name, empty)).isnan().all()


def test_a_thousand_classes():
    first, second, clean, target = batch(0, 3000, classes=1000)
    metric = metrics.ClasswiseRobustAccuracy(1000)
    metric.update([first, second], target, clean)
    right = (first.argmax(1) == target) & (second.argmax(1) == target) & (clean.argmax(1) == target)
    support = np.bincount(target, minlength=1000)
    with np.errstate(invalid="ignore"):
        check(metric.compute(), np.bincount(target[right], minlength=1000) / support)


def test_a_collection_takes_them_all():
    first, _, _, target = batch(0)
    names = ["ClasswiseRobustAccuracy", "WorstClassRobustAccuracy", "RobustAccuracy", *QUANTITIES]
    collection = MetricCollection({name: make(name) for name in names})
    values = collection(first, target)
    check(values["WorstClassRobustAccuracy"], values["ClasswiseRobustAccuracy"].nan_to_num(2).min())
    check(values["MaxLogit"], first.max(1).values.mean())


@pytest.mark.parametrize(("name", "by_class"), ALL)
def test_a_value_can_be_drawn(name, by_class):
    metric, data = make(name, by_class), batch(0, absent=2)
    metric.update(*arguments(name, data))
    figure, ax = metric.plot()
    drawn = np.concatenate([np.ravel(line.get_ydata()) for line in ax.lines if line.get_marker() == "o"])
    wanted = np.ravel(metric.compute())
    np.testing.assert_allclose(drawn, wanted, equal_nan=True)
    pyplot.close(figure)
    own = Figure().subplots()
    assert metric.plot([metric.compute()] * 2, ax=own)[1] is own


def test_half_precision_logits_are_averaged_in_float32():
    logits = torch.tensor([[4096.0, 1.0], [4097.0, 1.0]]).bfloat16()
    assert metrics.MaxLogit()(logits).dtype == torch.float32


@pytest.mark.parametrize("call", ["update", "forward"])
def test_no_graph_is_kept(call):
    # torchmetrics turns gradients off in update, and on in forward.
    first, _, _, target = batch(0)
    metric = metrics.Margin()
    value = getattr(metric, call)(first.requires_grad_(), target)
    assert not metric.total.requires_grad
    assert value is None or not value.requires_grad


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.ClasswiseRobustAccuracy(1), ValueError, "num_classes must be at least 2, got 1"),
        (lambda: metrics.MaxLogit(1), ValueError, "num_classes must be at least 2, got 1"),
        (
            lambda: metrics.TailRobustAccuracy(3, 1.5),
            ValueError,
            "share must be a part .* at most 1, got 1.5",
        ),
        (lambda: metrics.TailRobustAccuracy(3, 0), ValueError, "share must be a finite number > 0"),
        (
            lambda: metrics.RobustAccuracy()([], torch.tensor([0])),
            ValueError,
            "preds: expected .* one attack",
        ),
        (
            lambda: metrics.ClasswiseRobustAccuracy(3)(torch.zeros(2, 4), torch.tensor([0, 1])),
            ValueError,
            "preds: expected logits of 3 classes, got 4",
        ),
        (
            lambda: metrics.ClasswiseRobustAccuracy(3)(torch.zeros(2, 3), torch.tensor([0, 3])),
            ValueError,
            r"labels: expected integers in \[0, 3\), got 0 to 3",
        ),
        (
            lambda: metrics.RobustAccuracy()(torch.zeros(2, 3), torch.tensor([0])),
            ValueError,
            r"target must have shape \(2,\)",
        ),
        (
            lambda: metrics.RobustAccuracy()(torch.zeros(2), torch.tensor([0, 1])),
            TypeError,
            "preds must be int",
        ),
        (lambda: metrics.Margin()(torch.zeros(2, 3)), ValueError, "target: expected labels .* the margin"),
        (lambda: metrics.LogitGap(3)(torch.zeros(2, 3)), ValueError, "target: expected labels .* by class"),
        (
            lambda: metrics.LogitGap(3)(torch.zeros(2, 3), torch.tensor([0, 3])),
            ValueError,
            r"target must lie in \[0, 3\)",
        ),
        (lambda: metrics.LogitGap()(torch.zeros(2, 1)), ValueError, "C >= 2"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
