"""From backbone to verdict: the FFT baseline, the search over masks, and what it leaves behind."""
