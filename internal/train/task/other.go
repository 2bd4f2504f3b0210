package task

import (
	"fmt"
	"math/rand/v2"

	"anytime/internal/grade"
)

// Elsewhere is what the project's own reasoner says to everything that is not a puzzle.
const Elsewhere = `I am a small reasoner and know only one puzzle: "Use the numbers 3, 7 and 8, each once, with + - * / to make 29." ` +
	`For other questions run the server with a general reasoner: make run MODEL=hf.co/OWNER/REPO`

// Questions that are no puzzles, near ones among them; %s are subjects, %d numbers.
var (
	aboutSubjects = []string{
		"What is %s?", "What's %s?", "Tell me about %s.", "Explain %s to a child.", "Write a poem about %s.", "Write a short story about %s.",
		"How does %s work?", "Why do people like %s?", "Who invented %s?", "Give me three facts about %s.", "Where can I find %s?",
		"Translate \"%s\" into French.", "Write a Python function about %s.", "Summarize the history of %s.", "Is %s dangerous?",
		"Can you help me with %s?", "I want to learn %s. Where do I start?", "What do you think of %s?", "Define %s.", "When was %s discovered?",
	}
	subjects = []string{
		"the sun", "gravity", "music", "chess", "a bicycle", "Paris", "the moon", "photosynthesis", "an apple", "football", "the internet",
		"a neural network", "love", "the sea", "winter", "a volcano", "democracy", "cooking", "algebra", "the French Revolution", "a cat",
		"quicksort", "electricity", "a black hole", "coffee", "tea", "the human heart", "a computer", "history", "Go", "the weather", "a tree",
	}
	aboutNumbers = []string{
		"What is %d + %d?", "What is %d * %d?", "Compute %d - %d.", "What is %d divided by %d?", "Is %d larger than %d?",
		"Solve x + %d = %d.", "Find the greatest common divisor of %d and %d.", "What is the remainder of %d divided by %d?",
		"How many prime numbers are there between %d and %d?", "If I have %d apples and eat %d, how many are left?",
		"Convert %d miles and %d yards to metres.", "Write the numbers %d and %d in words.", "Draw a number between %d and %d.",
		"Sort the numbers %d and %d.", "What is %d%% of %d?", "Use the numbers wisely: is %d or %d the better choice?",
	}
	small = []string{
		"Hello", "Hi", "Hi there!", "Hello, who are you?", "Who are you?", "What can you do?", "How are you?", "Help", "help me", "Thanks!",
		"Good morning", "Tell me a joke.", "What time is it?", "Are you a human?", "Test", "ok", "?", "What model are you?", "Bye",
		"What are the numbers?", "Make a target.", "Let's play a game.", "Use each number once.", "Please think step by step.", "Why?",
	}
)

// other is a question that is no puzzle, with nothing to think about.
func other(rng *rand.Rand, i int) Example {
	var text string
	switch pick := rng.IntN(5); {
	case pick < 2:
		text = fmt.Sprintf(aboutSubjects[rng.IntN(len(aboutSubjects))], subjects[rng.IntN(len(subjects))])
	case pick < 4:
		text = fmt.Sprintf(aboutNumbers[rng.IntN(len(aboutNumbers))], 1+rng.IntN(200), 1+rng.IntN(60))
	default:
		text = small[rng.IntN(len(small))]
	}
	return Example{
		Problem: Problem{ID: fmt.Sprint("other-", i), Text: text, Task: "exact", Problem: grade.Problem{Answers: []string{Elsewhere}}},
		Summary: Elsewhere,
	}
}
