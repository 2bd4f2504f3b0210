package summarize

// Majority returns the index of the answer that most votes agree on (the first to say it), and how sure it is: the sum of the
// agreeing votes' confidences over the number of votes, so that both disagreement and doubt lower it. Empty answers agree with
// nobody. Votes that agree form classes by equal; of classes of one size the more confident wins (self-consistency,
// arXiv 2203.11171, weighted by probability). winner is -1 if every answer is empty.
func Majority(votes []Summary, equal func(a, b string) bool) (winner int, confidence float64) {
	type class struct {
		first, size int
		confidence  float64
	}
	var classes []class
next:
	for i, v := range votes {
		if v.Answer == "" {
			continue
		}
		for k := range classes {
			if equal(votes[classes[k].first].Answer, v.Answer) {
				classes[k].size++
				classes[k].confidence += v.Confidence
				continue next
			}
		}
		classes = append(classes, class{i, 1, v.Confidence})
	}
	best := class{first: -1}
	for _, c := range classes {
		if c.size > best.size || c.size == best.size && c.confidence > best.confidence {
			best = c
		}
	}
	if best.first < 0 {
		return -1, 0
	}
	return best.first, best.confidence / float64(len(votes))
}
