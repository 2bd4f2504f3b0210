package server

import (
	"cmp"

	"anytime/internal/anytime"
)

// priority is what a request asks for, or its key's. Nobody may ask for more than the key has.
func (c *call) priority(asked *int) (int, error) {
	most := cmp.Or(c.key.priority, anytime.DefaultPriority)
	if asked == nil {
		return most, nil
	}
	if *asked > most {
		return 0, invalid("priority", "priority: is %d; here it may be at most %d", *asked, most)
	}
	return *asked, nil
}
