package trainer

import (
	"fmt"
	"strings"

	"anytime/internal/budget"
	"anytime/internal/train/advantage"
)

// Recipe is what tells the methods that the paper compares from one another (arXiv 2505.13438). G is the same for all.
type Recipe struct {
	Name      string
	Last      bool // summaries are taken at the last budget only: S is 1
	Summaries int  // A
	Prior     budget.Prior
	Thinking  advantage.Thinking
	Summary   advantage.Summary
}

// Recipes are those of the paper: GRPO, BRPO under three priors, and what lies between them.
var Recipes = []Recipe{
	{"grpo", true, 1, budget.PriorBase, advantage.V2Only, advantage.LastOnly},
	{"grpo-linear", false, 1, budget.PriorLinear, advantage.V2Only, advantage.LastOnly},
	{"grpo-decouple", false, 4, budget.PriorBase, advantage.V2Only, advantage.Siblings},
	{"grpo-vr", false, 1, budget.PriorBase, advantage.BRPO, advantage.LastOnly},
	{"brpo-base", false, 4, budget.PriorBase, advantage.BRPO, advantage.Siblings},
	{"brpo-linear", false, 4, budget.PriorLinear, advantage.BRPO, advantage.Siblings},
	{"brpo-uniform", false, 4, budget.PriorUniform, advantage.BRPO, advantage.Siblings},
}

// LookupRecipe returns the recipe of a name.
func LookupRecipe(name string) (Recipe, error) {
	var names []string
	for _, r := range Recipes {
		if r.Name == name {
			return r, nil
		}
		names = append(names, r.Name)
	}
	return Recipe{}, fmt.Errorf("there is no recipe %.32q: it must be one of %s", name, strings.Join(names, ", "))
}
