package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// StringList is one text or a list of texts.
type StringList []string

// UnmarshalJSON reads either.
func (s *StringList) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*s = StringList{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(s))
}

// TextContent is text, or text parts, which are joined.
type TextContent string

// UnmarshalJSON reads either.
func (c *TextContent) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, (*string)(c)) == nil {
		return nil
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(b, &parts); err != nil {
		return errors.New("content is neither text nor a list of text parts")
	}
	var joined strings.Builder
	for _, p := range parts {
		joined.WriteString(p.Text)
	}
	*c = TextContent(joined.String())
	return nil
}

// BudgetValue is text in the grammar of budgets, or a number of thinking tokens.
type BudgetValue string

// UnmarshalJSON reads either.
func (v *BudgetValue) UnmarshalJSON(b []byte) error {
	var n int
	if json.Unmarshal(b, &n) == nil {
		*v = BudgetValue(strconv.Itoa(n))
		return nil
	}
	return json.Unmarshal(b, (*string)(v))
}

// CheckpointList is text such as "64,128,256", or the same as a list of numbers.
type CheckpointList string

// UnmarshalJSON reads either.
func (c *CheckpointList) UnmarshalJSON(b []byte) error {
	var list []int
	if json.Unmarshal(b, &list) == nil {
		*c = CheckpointList(strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ","), "[]"))
		return nil
	}
	return json.Unmarshal(b, (*string)(c))
}

// ThinkValue is whether to think, or with what effort.
type ThinkValue struct {
	On     bool
	Effort string // "" where only a boolean was given
}

// UnmarshalJSON reads either.
func (t *ThinkValue) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &t.On) == nil {
		return nil
	}
	return json.Unmarshal(b, &t.Effort)
}

// ToolChoiceValue is "none", "auto", "required", or the name of a function.
type ToolChoiceValue struct {
	Mode     string // "" where a function is named
	Function string
}

// UnmarshalJSON reads either; a function's name stands in an object of its own, or, in /v1/responses, beside the type.
func (c *ToolChoiceValue) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &c.Mode) == nil {
		return nil
	}
	var object struct {
		Name     string `json:"name"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	if err := json.Unmarshal(b, &object); err != nil {
		return err
	}
	c.Function = object.Name + object.Function.Name
	return nil
}

// ResponseInputValue is a user's text, or items.
type ResponseInputValue []ResponseInputItem

// UnmarshalJSON reads either.
func (v *ResponseInputValue) UnmarshalJSON(b []byte) error {
	var text TextContent
	if json.Unmarshal(b, (*string)(&text)) == nil {
		*v = ResponseInputValue{{Role: new(ResponseInputItemRoleUser), Content: &text}}
		return nil
	}
	return json.Unmarshal(b, (*[]ResponseInputItem)(v))
}
