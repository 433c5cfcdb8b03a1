"""What the tests of other trainers look at: every call of a reward function inside them."""


def recording(reward):
    """A list that collects each call's prompts, rewards, u and scores."""
    calls, plain = [], reward.score

    def score(*arguments):
        calls.append((arguments[0], *plain(*arguments)))
        return calls[-1][1:]

    reward.score = score
    return calls
