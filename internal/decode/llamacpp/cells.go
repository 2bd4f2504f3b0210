package llamacpp

// cells mirrors what llama.cpp's unified KV cache holds: one cell for a token at a position, shared by the slots that it was
// copied to. So the scheduler knows whether a batch fits before llama.cpp is asked.
type cells struct {
	refs []uint16 // slots that share the cell
	free []int32
}

func newCells(n int) *cells {
	c := &cells{refs: make([]uint16, n), free: make([]int32, n)}
	for i := range c.free {
		c.free[i] = int32(n - 1 - i)
	}
	return c
}

// take returns n cells, which must be free.
func (c *cells) take(n int) []int32 {
	taken := append([]int32(nil), c.free[len(c.free)-n:]...)
	c.free = c.free[:len(c.free)-n]
	for _, i := range taken {
		c.refs[i] = 1
	}
	return taken
}

func (c *cells) share(list []int32) []int32 {
	for _, i := range list {
		c.refs[i]++
	}
	return append([]int32(nil), list...)
}

func (c *cells) release(list []int32) {
	for _, i := range list {
		if c.refs[i]--; c.refs[i] == 0 {
			c.free = append(c.free, i)
		}
	}
}
