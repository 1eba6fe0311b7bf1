"""Answers: tokens made one after another of prompts, through a cache or without one."""
