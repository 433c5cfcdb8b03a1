"""Every key of the pipeline, with its unit and legal values. A recipe starts from here and changes what it needs.

A key has one home and one default: this file. Set one from the command line with `--config.section.key=value`.
"""

from ml_collections import ConfigDict

# fmt: off


def get_config():
    config = ConfigDict()
    config.seed = 0  # int >= 0; every random number of the run is a fold of (seed, purpose, step)
    config.reward = "gold"  # training reward: 'gold' (the task's own), 'learned' (our Bradley-Terry model), 'hf:FOLDER', 'module:function'
    config.judge = "gold"  # second judge: 'gold' (the task's own), 'learned' (a reward model on other pairs), as above, 'none'

    config.data = ConfigDict()
    config.data.name = "synthetic"  # 'synthetic', 'synthetic_ledger', 'synthetic_ledger_runs', 'anthropic_hh', 'tldr', 'jsonl'
    config.data.path = ""  # folder or file of the data; '' for data that is generated or downloaded
    config.data.cache_dir = ""  # where TFDS keeps prepared data; '' is ~/tensorflow_datasets
    config.data.subset = "harmless_base"  # anthropic_hh only: helpful_base, helpful_online, helpful_rejection_sampled, harmless_base
    config.data.train_prompts = 0  # prompts to calibrate and align on; 0 keeps all (the synthetic task always keeps all)
    config.data.test_prompts = 64  # held-out prompts to evaluate on; 0 keeps all
    config.data.test_fraction = 0.1  # jsonl only: share of the prompts that is held out
    config.data.judge_fraction = 0.5  # share of the preference pairs kept for the judge, not seen by the reward model
    config.data.group_column = ""  # jsonl only: column whose value groups prompts in the report
    config.data.chat_template = ""  # jsonl only: Jinja file that turns {role, content} lists into text
    config.data.demonstrations_per_prompt = 40  # synthetic tasks only
    config.data.preferences_per_prompt = 200  # synthetic tasks only
    config.data.prompt_tokens = 8  # prompt slots, begin-of-sequence token included
    config.data.response_tokens = 8  # response slots, end-of-sequence token included
    config.data.long_prompts = "error"  # a prompt over the limit: 'error', 'truncate_left' (keeps its end), 'drop'

    config.tokenizer = ConfigDict()
    config.tokenizer.path = ""  # a SentencePiece .model file or a folder with a tokenizer; '' is the model's own, or trains one on the data
    config.tokenizer.kind = "word"  # how to train one: 'word' (split at spaces), 'bpe', 'unigram'
    config.tokenizer.vocab_size = 4096  # pieces to train; 'word' takes one a word

    config.model = ConfigDict()
    config.model.path = ""  # Hugging Face folder to start from (its sizes replace those below); '' is a fresh model
    config.model.num_layers = 2
    config.model.embed_dim = 64
    config.model.num_heads = 4  # query heads
    config.model.num_kv_heads = 4  # divides num_heads
    config.model.head_dim = 16
    config.model.mlp_dim = 192  # width of the gated MLP
    config.model.tied_embeddings = True  # one matrix for tokens in and logits out
    config.model.dtype = "float32"  # compute: 'float32', 'bfloat16'
    config.model.param_dtype = "float32"  # parameters as kept and trained; 'bfloat16' suits those that LoRA leaves alone
    config.model.remat = "none"  # 'none' keeps activations, 'layer' recomputes each layer in the backward pass
    config.model.attention = "xla"  # of whole sequences: 'xla', or 'splash', a Pallas kernel for TPUs

    config.lora = ConfigDict()
    config.lora.rank = 0  # of the adapters that stage align trains on the reference's own parameters; 0 trains all of them
    config.lora.alpha = 16.0  # adapters are scaled by alpha / rank
    config.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")  # projections that get one

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along the batch; -1 takes all that are left
    config.mesh.fsdp = 1  # devices that share the parameters, also along the batch
    config.mesh.tensor = 1  # devices that share heads and the MLP

    config.sft = ConfigDict()
    config.sft.steps = 200  # 0, with a model.path: that model is the reference policy as it is
    config.sft.batch_size = 256  # demonstrations a step
    config.sft.learning_rate = 3e-3  # peak; 5 % linear warm-up, cosine to 10 %
    config.sft.clip_norm = 1.0  # global gradient norm

    config.reward_model = ConfigDict()
    config.reward_model.steps = 800
    config.reward_model.batch_size = 256  # preference pairs a step
    config.reward_model.learning_rate = 3e-3
    config.reward_model.clip_norm = 1.0

    config.sampling = ConfigDict()
    config.sampling.at_once = 1  # groups of the prompts of a call, drawn at the same time by threads; on one CPU device 2 and more keep cores busy
    config.sampling.temperature = 1.0  # of every rollout; the theory is about 1.0
    config.sampling.truncated = "as_is"  # a response cut at the limit: 'as_is', 'penalty', 'lowest' (lowest calibrated reward)
    config.sampling.penalty = 0.0  # reward units taken off a cut response under 'penalty'

    config.calibrate = ConfigDict()
    config.calibrate.rollouts = 64  # K, reference rollouts per training prompt
    config.calibrate.held_out = 16  # further reference rollouts per prompt, not in the table, that test it
    config.calibrate.mismatch = "warn"  # held-out rollouts that the table does not calibrate: 'warn', 'refuse', 'ignore'
    config.calibrate.tails = "flat"  # u beyond the extremes of the K rollouts: 'flat' (ranks) or 'exponential' (fitted tails)
    config.calibrate.source = "table"  # u of training rewards: 'table' (rollouts) or 'amortized' (quantiles predicted from the prompt)
    config.calibrate.prompts_per_call = 136  # prompts sampled at once; a part file is saved after each call

    config.amortize = ConfigDict()
    config.amortize.enabled = False  # whether `run` includes it: quantiles of the reference reward, from the prompt
    config.amortize.levels = 32  # quantiles predicted, the expected order statistics of so many rollouts, >= 8
    config.amortize.steps = 300
    config.amortize.batch_size = 64  # prompts a step, each with its row of the table
    config.amortize.learning_rate = 1e-3
    config.amortize.clip_norm = 1.0
    config.amortize.held_out = 128  # reference rollouts per held-out prompt by which all calibrations are judged, >= 3
    config.amortize.leave_out = False  # also train without each group of prompts, and measure on that group

    config.prefix_scorer = ConfigDict()
    config.prefix_scorer.enabled = False  # whether `run` includes it: what `generate --procedure "blockwise(K, M)"` needs
    config.prefix_scorer.target = "calibrated"  # what a prefix predicts of its response: 'calibrated' (u) or 'reward'
    config.prefix_scorer.rollouts = 16  # reference responses per training prompt to learn from
    config.prefix_scorer.steps = 300
    config.prefix_scorer.batch_size = 32  # prompts a step, each with all its responses
    config.prefix_scorer.learning_rate = 1e-3
    config.prefix_scorer.clip_norm = 1.0
    config.prefix_scorer.held_out = 16  # responses per held-out prompt by which it is judged

    config.align = ConfigDict()
    config.align.methods = ("raw", "raw_group_std", "identity", "exponential(10)", "exponential(-5)")  # compared by `run`
    config.align.seeds = (0,)  # training seeds; every method is trained once with each, results pool prompts and seeds
    config.align.at_once = 1  # methods (and seeds) trained and measured at the same time, by threads of one process; on CPUs 2 and more keep cores busy
    config.align.steps = 140
    config.align.prompts_per_step = 64  # B
    config.align.microbatches = 1  # parts of a step's prompts whose gradients are summed one after the other; divides B
    config.align.rollouts = 8  # R, rollouts per prompt and step, >= 2
    config.align.learning_rate = 2e-3  # Adam, constant, then linear to 0
    config.align.decay = 0.7  # fraction of the steps over which the learning rate falls to 0
    config.align.clip_norm = 5.0  # global gradient norm
    config.align.target_kl = 0.5  # nats per sequence between policy and reference
    config.align.kl_margin = 1.15  # training aims at target_kl times this, so that equal KL is reached by interpolation
    config.align.kl_rate = 0.15  # gain of the beta controller, falling as the learning rate does; 0 keeps the closed-form beta
    config.align.kl_warmup = 20  # steps before the controller starts
    config.align.save_every = 50  # steps between checkpoints
    config.align.show_every = 50  # steps between tables of sampled responses with reward, u and advantage; 0 is none
    config.align.keep = 2  # newest checkpoints kept
    config.align.keep_best = 0  # best checkpoints kept besides: by mean score, corrected to the target KL

    config.baselines = ConfigDict()  # of the methods that docs/methods.md calls baselines
    config.baselines.ppo_epochs = 2  # passes over each step's rollouts
    config.baselines.ppo_minibatches = 2  # updates a pass; divides prompts_per_step
    config.baselines.ppo_clip = 0.2  # how far a token's probability ratio may go before its gradient stops
    config.baselines.ppo_decay = 0.95  # lambda of generalised advantages; 1 is Monte Carlo
    config.baselines.bonbon_sft = 0.005  # weight of BoNBoN's likelihood term; the squared margin has the rest
    config.baselines.bond_forward = 0.5  # weight of KL(best-of-n || policy) in BOND; KL(policy || best-of-n) has the rest

    config.evaluate = ConfigDict()
    config.evaluate.samples = 64  # M, responses per held-out prompt and policy
    config.evaluate.prompts_per_call = 64  # prompts sampled at once
    config.evaluate.best_of = (2, 4, 8)  # best-of-N to measure; N <= samples
    config.evaluate.worst_of = (2, 4, 8)  # worst-of-N to measure
    config.evaluate.headline = "best_of(4)"  # procedure of the headline figure
    config.evaluate.curve = (0.25, 0.5, 0.75)  # further interpolation weights between reference (0) and policy (1)
    config.evaluate.kl_tolerance = 0.01  # relative error of the KL at which methods are compared
    config.evaluate.show = 3  # held-out prompts whose responses the report shows

    config.log = ConfigDict()
    config.log.tensorboard = False  # also write TensorBoard events (needs the extra [tensorboard])
    config.log.profile_steps = ()  # (first, last): steps of every training loop to trace for XProf and Perfetto; () is none
    return config.lock()
