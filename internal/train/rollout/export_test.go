package rollout

// Seed is that with which trace g's thinking, or the a-th summary at its budget s, is drawn.
func (s Settings) SeedOf(problem string, place ...int) uint64 {
	return (&sampler{Config: Config{Settings: s}}).seed(problem, place...)
}
