"""Config A: the EDM baseline (paper App. B.1, Table 1). Declares every field once.

    python experiments/train.py --config=configs/config_a.py:digits

Each later letter imports the one before it and changes some fields. [choice] marks
decisions that the paper leaves open.
"""

import math

from ml_collections import ConfigDict

from configs.workloads import get_workload
from edm_jax.menu import choice


def get_config(workload: str = "digits") -> ConfigDict:
    w = get_workload(workload)
    config = ConfigDict()
    config.letter = "a"
    config.title = "EDM baseline"
    config.workload = workload
    config.seed = 0

    config.data = data = ConfigDict()
    data.reader = dict(w.reader)  # tfds: TensorFlow Datasets; or images, original, ...
    data.name = w.dataset
    data.data_dir = ""  # '': TFDS's default
    data.train_split = w.train_split
    data.heldout_split = w.heldout_split
    data.raw_mean = w.raw_mean
    data.raw_std = w.raw_std
    data.on_bad = w.on_bad  # at a damaged example: stop or skip
    data.num_workers = 0  # processes that read examples; 0: threads of this one
    data.classes = ()  # of which examples are used; (): all
    data.max_size = 0  # of the training examples, a random subset; 0: all
    data.sampling = choice("uniform")  # or balanced, weighted: how often a class is
    data.augment = choice("none")  # or flip, edm, edm_unflipped

    config.network = net = ConfigDict()
    net.resolution = w.resolution
    net.channels = w.channels
    net.num_classes = w.num_classes
    net.model_channels = w.model_channels
    net.channel_mult = w.channel_mult
    net.blocks_per_level = w.blocks_per_level
    net.attention_resolutions = w.attention_resolutions
    net.noise_channels = 0  # features of the noise level; 0: model_channels
    net.embedding_channels = 0  # 0: the channels of the widest level
    net.head_channels = 64  # per attention head
    net.block = "branch"  # or main_path: where resampling and pixel norm act
    net.weights = "biased"  # or plain, mp
    # Choices from edm_jax/models; `describe.py --menu=init` lists those for init.
    net.init = "adm"  # or uniform, normal, he, ...
    net.zero_last = True  # the last layer of every branch starts at zero
    net.norm = "group"  # or rms_group, none
    net.pixel_norm = False  # of the encoder's main path
    net.attention = "dot"  # or cosine
    net.modulation = "scale_shift"  # or scale
    net.noise_features = "positional"  # or fourier, mp_fourier
    net.embedding_layers = 2
    net.unit_variance_label = False  # scale the one-hot label by sqrt(num_classes)
    net.constant_channel = False  # append a channel of ones to the input
    net.output_silu = True
    net.activation = choice("silu")  # or relu, gelu, ...
    net.mp_activation = False  # divide by its magnitude under N(0, 1)
    net.add = "sum"  # or mp_sum, with the balances t below
    net.cat = "cat"  # or mp_cat
    net.residual_balance = 0.3  # t of residual and attention sums
    net.embedding_balance = 0.5  # t of noise and label
    net.cat_balance = 0.5  # t of main path and skip
    net.gain = False  # learned scalars, from zero, on modulation and output
    net.clamp = math.inf  # bound on block outputs
    net.dropout = 0.1
    net.dropout_resolutions = ()  # levels that have dropout; (): all
    net.compute_dtype = w.compute_dtype
    net.half_precision = "partial"  # or full
    # For float32 products. With "default", GPUs use TF32 and TPUs bfloat16.
    net.matmul_precision = "highest"

    # What is trained of weights that --init_from names: none: all; lora, sphere, ...: an
    # adapter alone.
    config.adapter = choice("none")

    config.loss = loss = ConfigDict()
    loss.sigma_data = 0.5
    loss.P_mean = -1.2
    loss.P_std = 1.2
    loss.uncertainty = False  # the u(sigma) head, Eq. 21
    loss.label_dropout = (
        0.0  # share of classes hidden, for guidance by the network itself
    )

    config.optimizer = opt = ConfigDict()
    opt.batch_size = 2 * w.batch_size
    opt.alpha_ref = w.alpha_ref_plain
    # Choices from edm_jax/optim; `describe.py --menu=optimizer` lists those for method.
    opt.schedule = choice("constant")  # or inverse_sqrt, cosine, one_cycle, ...
    opt.warmup = choice("linear", rampup_mimg=w.rampup_mimg)  # or none, cosine, ...
    opt.method = choice("adam", beta1=0.9, beta2=0.999, eps=1e-8)
    opt.clip = choice("none")  # or global_norm, agc, zclip, ...
    opt.noise = choice("none")  # on the gradients; or annealed
    opt.penalty = choice("none")  # or weight_decay, l1, l2
    # Groups of parameters by pattern: rate, schedule, warmup, method, penalty, frozen.
    opt.groups = ConfigDict()  # such as --config.optimizer.groups.label.rate=0.5
    opt.depth_decay = 1.0  # of the rates, for each block further from the output
    opt.loss_scale = 100.0  # for float16; divided out of the gradient again
    opt.forced_weight_norm = False
    # What happens to gradient elements that are not finite.
    opt.nonfinite = "zero"  # or skip, stop

    config.ema = ema = ConfigDict()
    # The paper's A has only the traditional average; the power-function pair is tracked
    # as well so that averages of A, too, can be rebuilt at any length. [choice]
    ema.sigma_rels = (0.05, 0.10)
    ema.halflives_mimg = (w.halflife_mimg,)
    ema.halflife_rampup = 0.05  # half-life <= this fraction of the images seen
    ema.update_every = 1  # steps
    ema.snapshot_dtype = "float32"  # or float16, bfloat16
    ema.keep = choice("all")  # or thinned: which snapshots

    config.training = training = ConfigDict()
    training.start = choice("scratch")  # or weights, of another run
    training.duration_mimg = w.duration_mimg
    training.snapshot_mimg = w.snapshot_mimg
    # '': inside RUN. Under gs://BUCKET/DIR, say, the last two parts of RUN's path.
    training.snapshot_dir = ""
    training.log_mimg = w.log_mimg
    training.probe_mimg = w.probe_mimg  # held-out loss and magnitudes
    # Stop once this many images bring no better held-out loss.
    training.patience_mimg = math.inf
    # Thresholds for alerts in the log:
    training.alert_loss = 3.0  # a step's loss over its running mean
    training.alert_growth = 10.0  # magnitudes over those of the first probe
    # Robust deviations of a loss or gradient norm from those of earlier steps.
    training.alert_z = 10.0
    training.alert_update = 0.5  # size of an update over that of the weights
    training.sharpness_iterations = 0  # of Lanczos, at probes; 0: none
    training.evaluate_mimg = math.inf  # evaluate samples during training this often
    # How the run is executed; these fields may change when it resumes.
    training.checkpoint_mimg = 8 * w.snapshot_mimg
    training.keep_checkpoints = 2  # the last ones
    training.keep_checkpoint_mimg = math.inf  # also keep one per such interval
    training.parallel = "jit"  # or pmap
    # What is sharded over the devices rather than replicated: none, state (moments and
    # averages), or full (the parameters, too).
    training.sharding = "none"
    training.shards = 0  # devices that share one copy, such as those of a host; 0: all
    training.microbatches = 1  # parts of a batch, their gradients summed
    training.remat = False  # recompute activations instead of storing them

    config.evaluation = evaluation = ConfigDict()
    evaluation.sigma_rels = tuple(round(0.01 * i, 3) for i in range(2, 26))
    evaluation.P_mean = w.P_mean  # noise levels of the held-out loss,
    evaluation.P_std = w.P_std  # the same for every letter
    evaluation.num_heldout = 4096  # images, at most
    evaluation.num_sigmas = 1  # per held-out image
    evaluation.batch_size = w.evaluation_batch_size
    evaluation.num_samples = w.num_samples
    # Listed by `describe.py --menu=evaluator` and `--menu=sampler`.
    evaluation.evaluators = w.evaluators
    evaluation.sampler = choice("heun")
    evaluation.num_steps = 32  # of the sampler
    evaluation.sigma_min = 0.002
    evaluation.sigma_max = 80.0
    evaluation.rho = 7.0
    evaluation.decoder = choice("none")  # or vae, for pictures of latents
    return config
