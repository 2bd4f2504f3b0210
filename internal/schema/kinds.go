package schema

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
)

// object returns the expression of an object: the properties in order, those that are not required left out at will.
func (c *compiler) object(p place, s *object) (string, error) {
	properties := &object{}
	if raw, ok := s.values["properties"]; ok {
		var err error
		if properties, err = p.at(raw, "properties").object(); err != nil {
			return "", err
		}
	}
	var required []string
	if raw, ok := s.values["required"]; ok && json.Unmarshal(raw, &required) != nil {
		return "", p.at(raw, "required").refuse("a list of names is needed here")
	}
	for _, name := range required {
		if properties.values[name] == nil {
			return "", p.refuse("%.40q is required, but not among the properties", name)
		}
	}
	ws := c.use("ws")
	colon := " " + ws + ` ":" ` + ws + " "

	// Others come last. rest is what may follow something, first what an object may begin with.
	rest, first := "", ""
	if raw, ok := s.values["additionalProperties"]; ok && string(raw) != "false" || !ok && len(properties.keys) == 0 {
		value := c.use("any")
		if ok && string(raw) != "true" {
			var err error
			if value, err = c.value(p.at(raw, "additionalProperties"), nil); err != nil {
				return "", err
			}
		}
		name, err := c.otherThan(properties.keys)
		if err != nil {
			return "", err
		}
		other, err := c.rule(name + colon + value)
		if err != nil {
			return "", err
		}
		rest = fmt.Sprintf(`(%s "," %s %s)*`, ws, ws, other)
		first = fmt.Sprintf("(%s %s)?", other, rest)
	}
	for i := len(properties.keys) - 1; i >= 0; i-- {
		name := properties.keys[i]
		value, err := c.value(p.at(properties.values[name], "properties", name), nil)
		if err != nil {
			return "", err
		}
		member, err := c.rule(exactly(quote(name)) + colon + value)
		if err != nil {
			return "", err
		}
		// What follows is named, so that the grammar does not grow with the square of the properties.
		after := ""
		if rest != "" {
			if after, err = c.rule(rest); err != nil {
				return "", err
			}
		}
		if slices.Contains(required, name) {
			first = member + " " + after
			rest = fmt.Sprintf(`%s "," %s %s %s`, ws, ws, member, after)
			continue
		}
		begin := ""
		if first != "" {
			if begin, err = c.rule(first); err != nil {
				return "", err
			}
		}
		first = fmt.Sprintf("(%s %s | %s)", member, after, or(begin, `""`))
		rest = fmt.Sprintf(`(%s "," %s %s %s | %s)`, ws, ws, member, after, or(after, `""`))
	}
	if first == "" {
		return c.rule(fmt.Sprintf(`"{" %s "}"`, ws))
	}
	return c.rule(fmt.Sprintf(`"{" %s %s %s "}"`, ws, first, ws))
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// otherThan allows a quoted name, without escapes, that is none of those given.
func (c *compiler) otherThan(names []string) (string, error) {
	if len(names) == 0 {
		return c.use("string"), nil
	}
	tail, err := c.rule(freeText + `* "\""`)
	if err != nil {
		return "", err
	}
	// follow allows what may come behind a beginning that all of the names share.
	var follow func(names []string) (string, error)
	follow = func(names []string) (string, error) {
		groups := map[rune][]string{}
		taken := false
		var order []rune
		for _, n := range names {
			if n == "" {
				taken = true
				continue
			}
			r := []rune(n)[0]
			if groups[r] == nil {
				order = append(order, r)
			}
			groups[r] = append(groups[r], n[len(string(r)):])
		}
		var list []string
		if !taken {
			list = append(list, `"\""`)
		}
		class := strings.Builder{}
		for _, r := range order {
			class.WriteString(classChar(r))
			if r == '"' || r == '\\' || r < ' ' || r == 0x7f {
				continue // it would be escaped, and no escapes are allowed
			}
			next, err := follow(groups[r])
			if err != nil {
				return "", err
			}
			list = append(list, exactly(string(r))+" "+next)
		}
		list = append(list, `[^"\\\x00-\x1f\x7f`+class.String()+"] "+tail)
		return c.rule(strings.Join(list, " | "))
	}
	rest, err := follow(names)
	return `"\"" ` + rest, err
}

// array returns the expression of an array.
func (c *compiler) array(p place, s *object) (string, error) {
	low, high, err := s.bounds(p, "minItems", "maxItems")
	if err != nil {
		return "", err
	}
	var prefix []json.RawMessage
	if raw, ok := s.values["prefixItems"]; ok {
		if prefix, err = p.at(raw, "prefixItems").list(); err != nil {
			return "", err
		}
	}
	item, more := c.use("any"), true
	if raw, ok := s.values["items"]; ok {
		if more = string(raw) != "false"; more {
			if item, err = c.value(p.at(raw, "items"), nil); err != nil {
				return "", err
			}
		}
	}
	if !more && (high < 0 || high > len(prefix)) {
		high = len(prefix)
	}
	if high >= 0 && high < low {
		return "", p.refuse("it must have at least %d items and can have at most %d", low, high)
	}
	ws := c.use("ws")
	comma := fmt.Sprintf(`%s "," %s `, ws, ws)
	item, err = c.rule(item)
	if err != nil {
		return "", err
	}
	rest := ""
	if n := len(prefix); high < 0 || high > n {
		left := -1
		if high >= 0 {
			left = high - max(n, 1)
		}
		next, err := c.rule(comma + item)
		if err != nil {
			return "", err
		}
		if rest, err = c.repeat(p, next, max(0, low-max(n, 1)), left); err != nil {
			return "", err
		}
	}
	list := ""
	if len(prefix) == 0 && high != 0 {
		list = item + " " + rest
		if low == 0 {
			list = "(" + list + ")?"
		}
	}
	// The array may end behind any item from the smallest number on.
	for i := len(prefix) - 1; i >= 0; i-- {
		if high >= 0 && i >= high {
			continue
		}
		value, err := c.value(p.at(prefix[i], "prefixItems", i), nil)
		if err != nil {
			return "", err
		}
		if i == len(prefix)-1 {
			list = rest
		}
		if i > 0 {
			value = comma + value
		}
		list = value + " " + list
		if i >= low {
			list = "(" + list + ")?"
		}
		if list, err = c.rule(list); err != nil {
			return "", err
		}
	}
	return c.rule(fmt.Sprintf(`"[" %s %s %s "]"`, ws, list, ws))
}

// number returns the expression of a number between bounds.
func (c *compiler) number(p place, s *object, whole bool) (string, error) {
	low, high, err := s.interval(p, whole)
	if err != nil {
		return "", err
	}
	if low == nil && high == nil {
		if whole {
			return c.use("integer"), nil
		}
		return c.use("number"), nil
	}
	var list []string
	// Numbers from 0 on, then those below it by their absolute value.
	if high == nil || *high >= 0 {
		list = append(list, magnitudes(max(0, or0(low, 0)), high, whole)...)
	}
	if low == nil || *low < 0 {
		from := int64(1)
		if high != nil && *high < 0 {
			from = -*high
		} else if !whole {
			from = 0
		}
		var to *int64
		if low != nil {
			n := -*low
			to = &n
		}
		for _, m := range magnitudes(from, to, whole) {
			list = append(list, `"-" `+m)
		}
	}
	return c.rule(strings.Join(list, " | "))
}

func or0(n *int64, otherwise int64) int64 {
	if n == nil {
		return otherwise
	}
	return *n
}

// interval reads the bounds of a number, which must be whole ones; nil where there is none.
func (s *object) interval(p place, whole bool) (low, high *int64, err error) {
	read := func(key string, up bool, exclusive bool) (*int64, error) {
		raw, ok := s.values[key]
		if !ok {
			return nil, nil
		}
		at := p.at(raw, key)
		n, ok := new(big.Rat).SetString(string(raw))
		if !ok || len(raw) > 32 {
			return nil, at.refuse("a number is needed here")
		}
		if !n.IsInt() && !whole {
			return nil, at.refuse("the bound of a number that is no integer must be a whole number to be enforced here")
		}
		if !whole && exclusive {
			return nil, at.refuse("it cannot be enforced here for a number that is no integer; use %s", map[bool]string{true: "minimum", false: "maximum"}[up])
		}
		// The nearest integer within.
		floor := new(big.Int).Div(n.Num(), n.Denom())
		switch {
		case up && exclusive, up && !n.IsInt():
			floor.Add(floor, big.NewInt(1))
		case !up && exclusive && n.IsInt():
			floor.Sub(floor, big.NewInt(1))
		}
		const most = 1e15
		if !floor.IsInt64() || math.Abs(float64(floor.Int64())) > most {
			return nil, at.refuse("it must be between -%g and %g", most, most)
		}
		v := floor.Int64()
		return &v, nil
	}
	for _, b := range []struct {
		key           string
		up, exclusive bool
	}{{"minimum", true, false}, {"exclusiveMinimum", true, true}, {"maximum", false, false}, {"exclusiveMaximum", false, true}} {
		n, err := read(b.key, b.up, b.exclusive)
		switch {
		case err != nil:
			return nil, nil, err
		case n == nil:
		case b.up && (low == nil || *n > *low):
			low = n
		case !b.up && (high == nil || *n < *high):
			high = n
		}
	}
	if low != nil && high != nil && *low > *high {
		return nil, nil, p.refuse("no number is between its bounds")
	}
	return low, high, nil
}

// magnitudes allows numbers from low, 0 or more, to high. Where fractions are allowed a number is an integer below the last
// with any fraction, or the last.
func magnitudes(low int64, high *int64, whole bool) []string {
	if high == nil {
		digits := len(fmt.Sprint(low))
		list := []string{fmt.Sprintf("[1-9] [0-9]{%d,15}", digits)}
		end := int64(math.Pow10(digits)) - 1
		list = append(list, digitRange(low, end)...)
		return withFraction(list, whole)
	}
	if whole {
		return digitRange(low, *high)
	}
	list := []string{exactly(fmt.Sprint(*high)) + ` ("." "0"{1,16})?`}
	if low < *high {
		list = append(list, withFraction(digitRange(low, *high-1), false)...)
	}
	return list
}

func withFraction(list []string, whole bool) []string {
	if whole {
		return list
	}
	return []string{"(" + strings.Join(list, " | ") + `) ("." [0-9]{1,16})?`}
}

// digitRange allows the integers from low to high, both 0 or more, without leading zeros.
func digitRange(low, high int64) []string {
	var list []string
	for low <= high {
		// The widest block that begins at low: its last digits go from 0 to 9, the one before them over a range.
		block, free := int64(1), 0
		for low%(block*10) == 0 && low > 0 && low+block*10-1 <= high && len(fmt.Sprint(low+block*10-1)) == len(fmt.Sprint(low)) {
			block *= 10
			free++
		}
		end := low + block - 1
		for end+block <= high && (end/block)%10 != 9 {
			end += block
		}
		first, last := fmt.Sprint(low), fmt.Sprint(end)
		at := len(first) - free - 1
		text := ""
		if at > 0 {
			text = exactly(first[:at]) + " "
		}
		text += fmt.Sprintf("[%c-%c]", first[at], last[at])
		if free > 0 {
			text += fmt.Sprintf(" [0-9]{%d}", free)
		}
		list = append(list, text)
		low = end + 1
	}
	return list
}
