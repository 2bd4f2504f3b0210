package trainer

// Correct is correct.
var Correct = correct
