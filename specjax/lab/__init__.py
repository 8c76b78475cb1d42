"""Everything about decoding rather than of it: costs, benchmarks, audits, pictures, compiling."""
