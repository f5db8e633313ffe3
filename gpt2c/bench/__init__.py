"""The benchmarks behind `gpt2c bench`: what is measured, how, and how it is shown. They never pass or fail.

A benchmark is a dataclass of flags (`benchmark.Benchmark`) whose `measure` fills a `report.Report`: the machine, its
floors, the results and their tables. Times are `timing.interleaved`'s: all sides in turns, median and spread.
"""
