package grade

import (
	"math/big"
	"regexp"
	"slices"
	"strings"
)

// unit is a measure: its dimension and its size in the dimension's first unit.
type unit struct {
	dimension string
	size      *big.Rat
}

// unitTable maps names of units to measures. A word that it lacks is a dimension of
// its own: 5 apples are not 5 oranges.
var unitTable = parseUnits(`
length: 1 m meter meters metre metres; 1/1000 mm millimeter millimeters; 1/100 cm centimeter centimeters centimetre centimetres; 1000 km kilometer kilometers kilometre kilometres; 127/5000 in inch inches; 381/1250 ft foot feet; 1143/1250 yd yard yards; 201168/125 mi mile miles; 1/1000000 µm micron microns; 1/1000000000 nm nanometer nanometers
mass: 1 g gram grams; 1/1000 mg milligram milligrams; 1000 kg kilogram kilograms
time: 1 s sec secs second seconds; 1/1000 ms millisecond milliseconds; 60 min mins minute minutes; 3600 h hr hrs hour hours; 86400 day days; 604800 week weeks; 31557600 yr yrs year years
volume: 1 l L liter liters litre litres; 1/1000 ml mL milliliter milliliters
money: 1 $ dollar dollars usd USD buck bucks; 1/100 cent cents ¢
angle: 1 ° degree degrees deg; 1/60 '; 1/3600 ''
percent: 1 % percent
Hz: 1 Hz hertz; 1000 kHz; 1000000 MHz; 1000000000 GHz
N: 1 N newton newtons
J: 1 J joule joules; 1000 kJ; 3600000 kWh
kcal: 1 kcal
W: 1 W watt watts; 1000 kW
V: 1 V volt volts
K: 1 K kelvin kelvins
Pa: 1 Pa pascal pascals; 1000 kPa
mol: 1 mol mole moles
unit: 1 u unit units
ohm: 1 ohm ohms; 1000 kohm
speed: 1 mph
rotation: 1 rpm
eV: 1 eV; 1000 keV; 1000000 MeV
`)

func parseUnits(table string) map[string]unit {
	units := make(map[string]unit)
	for line := range strings.Lines(strings.TrimSpace(table)) {
		dimension, sizes, _ := strings.Cut(line, ":")
		for group := range strings.SplitSeq(sizes, ";") {
			words := strings.Fields(group)
			size, _ := new(big.Rat).SetString(words[0])
			for _, name := range words[1:] {
				units[name] = unit{dimension, size}
			}
		}
	}
	return units
}

// scales are words that multiply what stands before them.
var scales = map[string]*big.Rat{
	"dozen": big.NewRat(12, 1), "hundred": big.NewRat(100, 1), "thousand": big.NewRat(1000, 1), "million": big.NewRat(1e6, 1),
	"billion": big.NewRat(1e9, 1), "trillion": big.NewRat(1e12, 1),
}

// refuted are words behind a number that take it back or change it: no units.
var refuted = setOf("not no never incorrect wrong false extraneous factorial over minus plus times to less more fewer " +
	"remainder choose divided root least most cis")

// measure is the product of the units of a quantity.
type measure struct {
	size       *big.Rat
	dimensions map[string]int // powers
}

func (m measure) sameDimensions(o measure) bool {
	for d, power := range m.dimensions {
		if o.dimensions[d] != power {
			return false
		}
	}
	for d, power := range o.dimensions {
		if m.dimensions[d] != power {
			return false
		}
	}
	return true
}

// unitOf splits a quantity into its value and its measure. The measure has no
// dimensions if there is no unit behind the value.
func unitOf(n *node) (value *node, m measure) {
	m = measure{big.NewRat(1, 1), make(map[string]int)}
	first := n
	for first.op == opMul || first.op == opDiv || first.op == opNeg || first.op == opPow {
		first = first.kids[0]
	}
	if first.op == opWord || refutes(n) {
		return n, m
	}
	square := 1 // the power that "square" and "cubic" give to the next word
	value = m.split(n, 1, &square)
	return value, m
}

func refutes(n *node) bool {
	return n.op == opWord && refuted[strings.ToLower(n.name)] || slices.ContainsFunc(n.kids, refutes)
}

func (m measure) split(n *node, power int, modifier *int) *node {
	switch n.op {
	case opWord:
		if scales[n.name] != nil {
			return n
		}
		m.add(n.name, power, modifier)
		return nil
	case opPow:
		if base := n.kids[0]; base.op == opWord {
			if e := smallInt(n.kids[1]); e != 0 {
				m.add(base.name, power*e, modifier)
				return nil
			}
		}
	case opNeg:
		if v := m.split(n.kids[0], power, modifier); v != nil {
			return combine(opNeg, v)
		}
	case opMul, opDiv:
		sign := 1
		if n.op == opDiv {
			sign = -1
		}
		a := m.split(n.kids[0], power, modifier)
		b := m.split(n.kids[1], power*sign, modifier)
		switch {
		case b == nil:
			return a
		case a == nil && n.op == opMul:
			return b
		case a == nil:
			return combine(opDiv, integer(1), b)
		}
		return combine(n.op, a, b)
	}
	return n
}

func (m measure) add(name string, power int, modifier *int) {
	switch strings.ToLower(name) {
	case "square", "squared", "sq":
		*modifier = 2
		return
	case "cubic", "cubed", "cu":
		*modifier = 3
		return
	}
	power *= *modifier
	*modifier = 1
	u, ok := unitTable[name]
	if !ok && len(name) > 2 { // not Mg
		u, ok = unitTable[strings.ToLower(name)]
	}
	if !ok {
		u = unit{strings.TrimSuffix(strings.ToLower(name), "s"), big.NewRat(1, 1)}
	}
	if m.dimensions[u.dimension] += power; m.dimensions[u.dimension] == 0 {
		delete(m.dimensions, u.dimension)
	}
	for range min(max(power, -power), maxDepth) {
		if power > 0 {
			m.size.Mul(m.size, u.size)
		} else {
			m.size.Quo(m.size, u.size)
		}
	}
}

// smallInt returns the value of a literal integer of at most 6, else 0.
func smallInt(n *node) int {
	if n.op == opNeg {
		return -smallInt(n.kids[0])
	}
	if n.op != opNumber || !n.num.IsInt() || n.num.Cmp(big.NewRat(6, 1)) > 0 {
		return 0
	}
	return int(n.num.Num().Int64())
}

// quantity is a number with units that were written without \text: 20 km/h.
var quantity = regexp.MustCompile(`^([-+]?(?:[0-9][0-9,]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*-?[0-9]+\s*\}|[0-9]+))?)` +
	`((?:\s|~|\\[ ,;:])+)([A-Za-z\\][A-Za-z0-9\\/^{}. -]*)$`)

// uprightUnits writes the units of a quantity upright; it returns "" if the answer is no
// number with units that are known. Units
// that are letters, as in 20 m, may be variables, unless LaTeX put the space before
// them or they are of a usual form.
func uprightUnits(answer string) string {
	m := quantity.FindStringSubmatch(latex(answer))
	if m == nil {
		return ""
	}
	spaced := strings.ContainsAny(m[2], `\~`)
	units := strings.NewReplacer(`\Omega`, "ohm", `\mu m`, "micron", "{", "", "}", "").Replace(m[3])
	sure := spaced || usualUnits[strings.ReplaceAll(units, " ", "")]
	for _, word := range strings.FieldsFunc(units, func(r rune) bool { return strings.ContainsRune(" /^-0123456789", r) }) {
		if _, ok := unitTable[word]; !ok {
			return ""
		}
		sure = sure || len(word) > 1 && !strings.Contains(m[3], `\`)
	}
	if !sure {
		return ""
	}
	return m[1] + `\text{ ` + units + "}"
}

var usualUnits = setOf("K m/s m/s^2 N/m J/K V/m g/L")

// compound writes a quantity in several units of one dimension, each smaller than the one before, in the first of them: of 2 h 30 min it
// makes 5/2 h. It returns "" if the answer is none.
func compound(answer string) string {
	rest := signs.Replace(latex(answer))
	total := new(big.Rat)
	var first, last unit
	name := ""
	for n := 0; ; n++ {
		m := part.FindStringSubmatch(rest)
		if m == nil || n == maxParts {
			return ""
		}
		u, ok := unitTable[m[2]]
		if !ok || n > 0 && (u.dimension != first.dimension || u.size.Cmp(last.size) >= 0) {
			return ""
		}
		if n == 0 {
			first, name = u, m[2]
		}
		value, _ := new(big.Rat).SetString(m[1])
		total.Add(total, value.Mul(value, u.size))
		last, rest = u, rest[len(m[0]):]
		if rest == "" && n > 0 {
			total.Quo(total, first.size)
			if name = `\text{ ` + name + "}"; first == unitTable["°"] {
				name = `^\circ`
			}
			return `\frac{` + total.Num().String() + "}{" + total.Denom().String() + "}" + name
		}
	}
}

const maxParts = 4

var (
	signs = strings.NewReplacer(`^{\circ}`, "°", `^\circ`, "°", `\degree`, "°", `^{\prime\prime}`, "''", `^{\prime}`, "'", `\prime`, "'", `"`, "''",
		`\text`, "", `\mathrm`, "", "{", " ", "}", " ", "~", " ", `\,`, " ", `\ `, " ", "$", "")
	part = regexp.MustCompile(`^\s*(?:,|(?:,\s*)?and\b)?\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(°|''|'|[A-Za-z]+\b)\s*`)
)
