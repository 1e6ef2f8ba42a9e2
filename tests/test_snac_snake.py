"Snake: the package's function and gradients, as little memory, any threads, any type, no compiler."
import copy
import logging
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
import torch

from audiolab.snac import Snake1d, snake
from audiolab.snac import snake_activation as module

NO_PACKAGE = "snac is not installed: it is the oracle of this test"


def oracle():
    return pytest.importorskip("snac.layers", reason=NO_PACKAGE).snake


def reference(x, alpha, gradient):
    "Output and gradients in float64 by differentiation of the formula."
    x, alpha = x.detach().double().requires_grad_(), alpha.detach().double().requires_grad_()
    y = x + torch.sin(alpha*x)**2/(alpha + 1e-9)
    return y.detach(), *torch.autograd.grad(y, (x, alpha), gradient.double())


def gradients(function, x, alpha, gradient):
    x, alpha = x.detach().clone().requires_grad_(), alpha.detach().clone().requires_grad_()
    y = function(x, alpha)
    y.backward(gradient)
    return y.detach(), x.grad, alpha.grad


def relative(a, b):
    a, b = a.double(), b.double()
    return ((a - b).abs().max()/b.abs().max().clamp_min(1e-30)).item()


def example(*shape, scale=1., alpha=None):
    x = scale*torch.randn(shape)
    if alpha is None: alpha = torch.rand(1, shape[1], 1)*2 + .1
    else: alpha = torch.full((1, shape[1], 1), alpha)
    return x, alpha, torch.randn(shape)


SHAPES = (1, 3, 1), (2, 5, 17), (3, 2, 513), (1, 2, 8193), (2, 1, 20000), (0, 3, 8), (2, 3, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_package_s_function_for_any_shape(shape):
    x, alpha, g = example(*shape)
    y, for_x, for_alpha = gradients(snake, x, alpha, g)
    wanted, wanted_x, wanted_alpha = x, x, torch.zeros_like(alpha)
    if x.numel(): wanted, wanted_x, wanted_alpha = gradients(oracle(), x, alpha, g)
    assert y.shape == x.shape and for_x.shape == x.shape and for_alpha.shape == alpha.shape
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(for_x, wanted_x, rtol=1e-5, atol=3e-6)
    largest = float(wanted_alpha.abs().max())
    torch.testing.assert_close(for_alpha, wanted_alpha, rtol=1e-5, atol=1e-5*largest)


FREQUENCIES = (0., 1e-12, -1e-12, 1e-9, -1e-8, 1e-6, -1e-6, 1e-4, -1e-3, 1e-2, .5, -1., 3., -20.,
               33.)


@pytest.mark.parametrize("alpha", FREQUENCIES)
def test_any_frequency(alpha):
    "Near 0 the ripple is the ratio of two tiny numbers; 33 turns x = 3 into an angle of 100."
    x, alpha, g = example(2, 3, 700, alpha=alpha)
    found = gradients(snake, x, alpha, g)
    exact, package = reference(x, alpha, g), gradients(oracle(), x, alpha, g)
    for a, b, c in zip(found, exact, package):
        theirs = relative(c, b)
        ours = relative(a, b)
        assert relative(a, c) < 1e-5 or ours <= theirs*1.01, (relative(a, c), ours, theirs)
        assert relative(a, b) < max(2e-5, 2*theirs)
    torch.testing.assert_close(found[0], package[0], rtol=1e-6, atol=1e-6)


def test_angles_of_a_hundred_and_far_beyond():
    x, alpha, g = example(1, 4, 3000, scale=30.)
    found, package = gradients(snake, x, alpha, g), gradients(oracle(), x, alpha, g)
    for a, b in zip(found, package): assert relative(a, b) < 1e-5
    x[0, 1, ::7] *= 1e4  # beyond what the reduction takes: the careful sine
    x[0, 2, 5] = 3e37
    for a, b in zip(gradients(snake, x, alpha, g), gradients(oracle(), x, alpha, g)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5*float(b[..., :2, :].abs().median()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_and_where_it_was(bad):
    x, alpha, g = example(2, 3, 600)
    clean = snake(x, alpha)
    x[1, 2, 7] = bad
    y, for_x, for_alpha = gradients(snake, x, alpha, g)
    theirs = gradients(oracle(), x, alpha, g)
    for a, b in zip((y, for_x, for_alpha), theirs): assert torch.equal(a.isfinite(), b.isfinite())
    assert not y[1, 2, 7].isfinite() and not for_alpha[0, 2].isfinite()
    assert for_alpha[0, :2].isfinite().all()
    others = y.isfinite()
    assert torch.equal(y[others], clean[others]) and others.sum() == x.numel() - 1
    broken = alpha.clone()
    broken[0, 0] = bad
    found = snake(clean, broken)
    assert not found[:, 0].isfinite().any() and found[:, 1:].isfinite().all()


def test_the_infinite_gradient_of_a_broken_loss_is_not_hidden():
    x, alpha, g = example(1, 2, 900)
    g[0, 1, 3] = float("nan")
    _, for_x, for_alpha = gradients(snake, x, alpha, g)
    assert for_x.isnan().sum() == 1 and for_alpha[0, 1].isnan() and for_alpha[0, 0].isfinite()


def test_only_input_and_frequency_are_kept():
    x, alpha, _ = example(2, 4, 300)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        for leaf in (x, alpha): leaf.requires_grad_()
        y = snake(x*1, alpha)
        y.sum().backward()
    snakes = [t for t in saved if t.shape in (x.shape, alpha.shape)]
    assert len(saved) == len(snakes) and sum(t.nbytes for t in snakes) == x.nbytes + alpha.nbytes
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        with torch.no_grad(): assert not snake(x, alpha).requires_grad
        with torch.inference_mode(): assert not snake(x, alpha).requires_grad
        assert not snake(x.detach(), alpha.detach()).requires_grad
    assert not saved


def test_a_change_in_place_of_the_kept_input_is_found():
    x, alpha, _ = example(1, 2, 40)
    x = x.requires_grad_()*1
    y = snake(x, alpha)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"): y.sum().backward()


def test_either_gradient_alone():
    x, alpha, g = example(2, 3, 50)
    _, wanted_x, wanted_alpha = gradients(snake, x, alpha, g)
    x.requires_grad_()
    snake(x, alpha).backward(g)
    assert torch.equal(x.grad, wanted_x)
    x, alpha = x.detach(), alpha.requires_grad_()
    snake(x, alpha).backward(g)
    assert torch.equal(alpha.grad, wanted_alpha)


def test_gradients_of_gradients_are_refused():
    x, alpha, _ = example(1, 2, 30)
    x.requires_grad_()
    (first,) = torch.autograd.grad(snake(x, alpha).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"): first.sum().backward()


def test_torch_operations_are_the_same_function_in_float64():
    x, alpha, g = (t.double() for t in example(2, 3, 100))
    assert torch.autograd.gradcheck(snake, (x.requires_grad_(), alpha.requires_grad_()))
    for a, b in zip(gradients(snake, x, alpha, g), reference(x, alpha, g)):
        assert relative(a, b) < 1e-12


def test_a_piece_of_the_input_gives_that_piece_of_the_output():
    x, alpha, g = example(1, 3, 30000)
    x[0, 0, 5000] = 1e7
    y, for_x, _ = gradients(snake, x, alpha, g)
    for start, stop in ((0, 1), (1, 18), (333, 9000), (8191, 30000)):
        piece, piece_x, _ = gradients(snake, x[..., start:stop], alpha, g[..., start:stop])
        assert torch.equal(piece, y[..., start:stop])
        assert torch.equal(piece_x, for_x[..., start:stop])


@pytest.mark.parametrize("kind", ["transposed", "strided", "expanded"])
def test_layouts(kind):
    x, alpha, g = example(2, 3, 400)
    if kind == "transposed": x, g = (torch.randn(2, 400, 3).transpose(1, 2) for _ in range(2))
    if kind == "strided": x = torch.randn(2, 3, 800)[..., ::2]
    if kind == "expanded": g = torch.ones(1, 1, 1).expand(2, 3, 400)
    plain = gradients(snake, x.contiguous(), alpha, g.contiguous())
    for a, b in zip(gradients(snake, x, alpha, g), plain): assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_computed_wide(dtype):
    x, alpha, g = example(2, 3, 400)
    x, g = x.to(dtype), g.to(dtype)
    for kept in (alpha, alpha.to(dtype)):
        found = gradients(snake, x, kept, g)
        assert [t.dtype for t in found] == [dtype, dtype, kept.dtype]
        exact = reference(x, kept, g)
        assert torch.equal(found[0], module._forward_torch(x, kept))
        for a, b in zip(found, exact): assert relative(a, b) < torch.finfo(dtype).eps


def test_under_autocast():
    x, alpha, g = example(1, 4, 200)
    layers = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1), Snake1d(4), torch.nn.Conv1d(4, 4, 1))
    with torch.autocast("cpu", torch.bfloat16):
        y = layers(x)
        assert y.dtype == torch.bfloat16 and layers[1](x).dtype == torch.float32
    y.float().square().sum().backward()
    assert layers[1].alpha.grad.dtype == torch.float32 and layers[1].alpha.grad.abs().min() > 0


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    monkeypatch.setattr(module, "_SHARE", 512)
    before, found = torch.get_num_threads(), []
    x, alpha, g = example(2, 3, 9000)
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(gradients(snake, x, alpha, g))
    finally: torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other): assert torch.equal(a, b)


def test_several_callers_at_once(monkeypatch):
    monkeypatch.setattr(module, "_SHARE", 512)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    cases = [example(2, 3, 4000) for _ in range(6)]
    wanted, found = [gradients(snake, *case) for case in cases], [None]*6
    def work(i): found[i] = gradients(snake, *cases[i])
    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    for a, b in zip(wanted, found): assert all(map(torch.equal, a, b))


def _in_a_fork(queue, x, alpha):
    module._SHARE, torch.get_num_threads = 512, lambda: 2
    queue.put(snake(x, alpha).numpy())


can_fork = "fork" in multiprocessing.get_all_start_methods()


@pytest.mark.skipif(not can_fork, reason="optional: a system that can fork")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "_SHARE", 512)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x, alpha, _ = example(2, 3, 4000)
    wanted = snake(x, alpha)  # the pool of this process lives
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_fork, args=(queue, x, alpha))
    child.start()
    assert np.array_equal(queue.get(timeout=60), wanted.numpy())
    child.join(60)
    assert child.exitcode == 0


def test_where_no_folder_takes_the_code_or_nothing_compiles(monkeypatch, caplog):
    x, alpha, g = example(2, 3, 300)
    wanted, real, kinds = gradients(snake, x, alpha, g), module.numba.njit, []
    def uncached(*arguments, cache=False, **settings):
        kinds.append(cache)
        if cache: raise RuntimeError("cannot cache function '_forward_units': no locator available")
        return real(*arguments, **settings)
    try:
        monkeypatch.setattr(module.numba, "njit", uncached)
        module._kernels.cache_clear()
        for a, b in zip(gradients(snake, x, alpha, g), wanted): assert torch.equal(a, b)
        assert kinds == [True, False, False] and not caplog.records
        def broken(*arguments, **settings): raise OSError("no compiler")
        monkeypatch.setattr(module.numba, "njit", broken)
        module._kernels.cache_clear()
        with caplog.at_level(logging.WARNING, "audiolab"):
            for a, b in zip(gradients(snake, x, alpha, g), wanted): assert relative(a, b) < 1e-6
            snake(x, alpha)
        assert [record.message.count("no compiler") for record in caplog.records] == [1]
    finally:
        monkeypatch.undo()
        module._kernels.cache_clear()


def test_programs_are_traced_as_the_plain_formula():
    x, _, _ = example(2, 3, 64)
    layer = Snake1d(3)
    layer.alpha.data.uniform_(.3, 2)
    wanted = layer(x).detach()
    wanted_alpha, = torch.autograd.grad(layer(x).square().sum(), layer.alpha)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {2: torch.export.Dim.DYNAMIC}})
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.sin.default" in names
    longer = torch.randn(2, 3, 99)
    torch.testing.assert_close(program.module()(longer), layer(longer), rtol=1e-6, atol=1e-6)
    traced = torch.jit.trace(layer, (x,))
    torch.testing.assert_close(traced(longer), layer(longer), rtol=1e-6, atol=1e-6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).detach(), wanted, rtol=1e-6, atol=1e-6)
    found, = torch.autograd.grad(compiled(x).square().sum(), layer.alpha)
    torch.testing.assert_close(found, wanted_alpha, rtol=1e-5, atol=1e-5)


def test_the_layer_is_the_package_s_layer():
    theirs = pytest.importorskip("snac.layers", reason=NO_PACKAGE).Snake1d(5)
    ours = Snake1d(5)
    shapes, wanted = ({k: v.shape for k, v in o.state_dict().items()} for o in (ours, theirs))
    assert shapes == wanted
    theirs.alpha.data.uniform_(-1, 2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 60)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(x), ours(x))
    meta = copy.deepcopy(ours).to("meta")(x.to("meta"))
    assert meta.shape == x.shape and meta.device.type == "meta"


OTHERS = (((2, 3), (1, 3, 1)), ((2, 3, 4), (1, 4, 1)), ((2, 3, 4), (3,)),
          ((2, 3, 4), (1, 1, 1)))


@pytest.mark.parametrize("shapes", OTHERS)
def test_other_shapes_are_named(shapes):
    x, alpha = torch.zeros(shapes[0]), torch.ones(shapes[1])
    with pytest.raises(ValueError, match="takes x"): snake(x, alpha)


def test_on_a_gpu():
    if not torch.cuda.is_available(): pytest.skip("optional: a GPU")
    x, alpha, g = example(2, 3, 5000)
    found = gradients(snake, x.cuda(), alpha.cuda(), g.cuda())
    for a, b in zip(found, gradients(snake, x, alpha, g)): assert relative(a.cpu(), b) < 1e-5
