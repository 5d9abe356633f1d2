"""The demo model's exam as files: questions that it was not trained on, with their right answers.

`foreign` are pictures that its generator did not draw, `drawn` some that it did, clips and talk.
"""
