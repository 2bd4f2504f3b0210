package gguf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"anytime/internal/gguf"
	"anytime/internal/gguf/tiny"
)

// encode writes a GGUF file to memory.
func encode(t testing.TB, meta []gguf.Pair, tensors ...gguf.Tensor) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := gguf.Write(&buf, meta, tensors); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func read(data []byte) (*gguf.Header, error) {
	return gguf.ReadHeader(bytes.NewReader(data), int64(len(data)))
}

func tensor(name string, typ gguf.Type, values []float32, dims ...uint64) gguf.Tensor {
	return gguf.Tensor{Name: name, Type: typ, Dims: dims, Values: func() ([]float32, error) { return values, nil }}
}

func TestWriteAndReadBack(t *testing.T) {
	long := strings.Repeat("ü", 5000)
	h, err := read(encode(t, []gguf.Pair{
		{"general.architecture", "llama"},
		{"a.u8", uint8(200)}, {"a.i8", int8(-3)}, {"a.u16", uint16(1 << 15)}, {"a.i16", int16(-300)},
		{"a.u32", uint32(1 << 31)}, {"a.i32", int32(-5)}, {"a.u64", uint64(1 << 63)}, {"a.i64", int64(7)},
		{"a.f32", float32(0.5)}, {"a.f64", math.Pi}, {"a.bool", true}, {"a.long", long},
		{"a.strings", []string{"", "x", long}}, {"a.floats", make([]float32, 3000)}, {"a.bools", []bool{true, false}},
	}, tensor("m", gguf.F16, make([]float32, 6), 3, 2), tensor("v", gguf.F32, make([]float32, 5), 5)))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]uint64{"a.u8": 200, "a.u16": 1 << 15, "a.u32": 1 << 31, "a.u64": 1 << 63, "a.i64": 7} {
		if got, ok := h.Uint(key); !ok || got != want {
			t.Errorf("%s = %d, %v; want %d", key, got, ok, want)
		}
	}
	for _, key := range []string{"a.i8", "a.i16", "a.i32", "a.f32", "a.long", "absent"} {
		if got, ok := h.Uint(key); ok {
			t.Errorf("%s = %d as a Uint", key, got)
		}
	}
	if f, ok := h.Float("a.f64"); !ok || f != math.Pi {
		t.Errorf("a.f64 = %v", f)
	}
	if b, ok := h.Bool("a.bool"); !ok || !b {
		t.Errorf("a.bool = %v", b)
	}
	if s, ok := h.String("a.long"); !ok || s != long {
		t.Errorf("a.long has %d bytes", len(s))
	}
	if s, ok := h.Strings("a.strings"); !ok || !slices.Equal(s, []string{"", "x", long}) {
		t.Errorf("a.strings has %d entries", len(s))
	}
	if keys := h.Keys(); len(keys) != 16 || keys[1] != "a.u8" {
		t.Errorf("keys = %q", keys)
	}
	want := []gguf.TensorInfo{
		{Name: "m", Type: gguf.F16, Dims: []uint64{3, 2}},
		{Name: "v", Type: gguf.F32, Dims: []uint64{5}, Offset: 32},
	}
	if !reflect.DeepEqual(h.Tensors, want) {
		t.Errorf("tensors = %+v, want %+v", h.Tensors, want)
	}
	if h.Parameters() != 11 || h.TensorBytes() != 32 || h.DataOffset%32 != 0 {
		t.Errorf("%d parameters in %d bytes from %d", h.Parameters(), h.TensorBytes(), h.DataOffset)
	}
}

func TestStoredValues(t *testing.T) {
	for _, c := range []struct {
		value float32
		half  uint16
	}{
		{0, 0}, {float32(math.Copysign(0, -1)), 0x8000}, {1, 0x3c00}, {-2, 0xc000}, {65504, 0x7bff}, {65520, 0x7c00}, {1e9, 0x7c00},
		{float32(math.Inf(-1)), 0xfc00}, {0x1p-14, 0x0400}, {0x1p-24, 0x0001}, {0x1p-25, 0}, {0x1.8p-25, 1}, {1e-30, 0},
		{1 + 0x1p-11, 0x3c00}, {1 + 3*0x1p-11, 0x3c02}, {0x1.ff8p-15, 0x03ff}, {0x1.ffcp-15, 0x0400},
	} {
		data := encode(t, nil, tensor("t", gguf.F16, []float32{c.value}, 1))
		h, err := read(data)
		if err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint16(data[h.DataOffset:]); got != c.half {
			t.Errorf("%v is stored as %#04x, want %#04x", c.value, got, c.half)
		}
	}
	values := make([]float32, 64)
	for i := range 32 {
		values[i] = float32(i-16) / 16 // largest is 1: steps of 1/127; the second block is zero
	}
	data := encode(t, nil, tensor("t", gguf.Q8_0, values, 64))
	h, err := read(data)
	if err != nil {
		t.Fatal(err)
	}
	block := data[h.DataOffset:]
	for i, v := range values[:32] {
		if got := float32(int8(block[2+i])) / 127; math.Abs(float64(got-v)) > 0.5/127+1e-6 {
			t.Errorf("value %d, %v, is stored as %v", i, v, got)
		}
	}
	if !bytes.Equal(block[34:68], make([]byte, 34)) {
		t.Errorf("a block of zeros is stored as %x", block[34:68])
	}
}

func TestWriteRefuses(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		meta   []gguf.Pair
		tensor gguf.Tensor
		want   string
	}{
		"value type":   {[]gguf.Pair{{"k", 1}}, tensor("t", 0, nil, 1), "a int is not a metadata value"},
		"tensor type":  {nil, tensor("t", 12, nil, 256), "cannot write Q4_K"},
		"odd row":      {nil, tensor("t", gguf.Q8_0, nil, 33), "blocks of 32"},
		"no dimension": {nil, tensor("t", gguf.F32, nil), "dimensions []"},
		"few values":   {nil, tensor("t", gguf.F32, make([]float32, 3), 2, 2), "got 3 values"},
		"source":       {nil, gguf.Tensor{Name: "t", Dims: []uint64{1}, Values: func() ([]float32, error) { return nil, broken }}, "broken"},
	} {
		if err := gguf.Write(io.Discard, c.meta, []gguf.Tensor{c.tensor}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

func TestWriteFileKeepsTheOldFileOnFailure(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	text := func(s string, err error) func(io.Writer) error {
		return func(w io.Writer) error {
			_, failed := io.WriteString(w, s)
			return errors.Join(err, failed)
		}
	}
	if err := gguf.WriteFile(path, text("old", nil)); err != nil {
		t.Fatal(err)
	}
	if err := gguf.WriteFile(path, text("half of the n", io.ErrShortWrite)); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("error %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Errorf("the file holds %q", got)
	}
	if err := gguf.WriteFile(path, text("new", nil)); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "new" {
		t.Errorf("the file holds %q", got)
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("%v are left", files)
	}
	if err := gguf.WriteFile(filepath.Join(path, "no folder"), text("x", nil)); err == nil {
		t.Error("a file was written into no folder")
	}
}

// raw builds headers that Write would not.
func raw(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		if s, ok := p.(string); ok {
			b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(s))))
			b.WriteString(s)
			continue
		}
		if err := binary.Write(&b, binary.LittleEndian, p); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func TestReadHeaderRefuses(t *testing.T) {
	magic := []byte("GGUF")
	one := func(tail ...any) []byte { // a file with one key
		return raw(append([]any{magic, uint32(3), uint64(0), uint64(1)}, tail...)...)
	}
	table := func(tail ...any) []byte { // a file with one tensor
		return raw(append([]any{magic, uint32(3), uint64(1), uint64(0)}, tail...)...)
	}
	const huge = uint64(1) << 62
	zeros := make([]byte, 256)
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":              {nil, "not a GGUF file"},
		"other file":         {[]byte("PK\x03\x04 and so on"), "not a GGUF file"},
		"version 1":          {raw(magic, uint32(1), uint32(0), uint32(0), huge), "version is 1"},
		"big endian":         {raw(magic, uint32(3<<24), uint64(0), uint64(0)), "little endian"},
		"many tensors":       {raw(magic, uint32(3), huge, uint64(0)), "tensors: at most"},
		"many keys":          {raw(magic, uint32(3), uint64(0), huge), "keys: at most"},
		"ends early":         {raw(magic, uint32(3), uint64(0)), "ends in the middle"},
		"missing key":        {one(), "ends in the middle"},
		"long key":           {one(huge), "a string claims"},
		"empty key":          {one("", uint32(0), uint8(1)), "is not a key"},
		"key with space":     {one("a b", uint32(0), uint8(1)), "is not a key"},
		"key twice":          {raw(magic, uint32(3), uint64(0), uint64(2), "a", uint32(0), uint8(1), "a", uint32(0), uint8(1)), "there twice"},
		"value type":         {one("a", uint32(13)), "type is 13"},
		"boolean":            {one("a", uint32(7), uint8(2)), "must be 0 or 1"},
		"long string":        {one("a", uint32(8), huge), "a string claims"},
		"long array":         {one("a", uint32(9), uint32(4), huge, zeros), "it claims"},
		"long string array":  {one("a", uint32(9), uint32(8), huge, zeros), "an array claims"},
		"array of arrays":    {one("a", uint32(9), uint32(9), uint64(1), uint32(4), uint64(1), uint32(1)), "array of arrays"},
		"array element type": {one("a", uint32(9), uint32(99), uint64(1)), "elements have type 99"},
		"alignment 0":        {one("general.alignment", uint32(4), uint32(0)), "general.alignment is 0"},
		"alignment 48":       {one("general.alignment", uint32(4), uint32(48)), "general.alignment is 48"},
		"alignment type":     {one("general.alignment", uint32(10), uint64(32)), "general.alignment is 32 (uint64)"},
		"tensor name":        {table(strings.Repeat("n", 64), uint32(1), uint64(1), uint32(0), uint64(0), zeros), "not a tensor name"},
		"no dimensions":      {table("t", uint32(0), uint32(0), uint64(0), zeros), "has 0 dimensions"},
		"five dimensions":    {table("t", uint32(5), zeros), "has 5 dimensions"},
		"zero dimension":     {table("t", uint32(2), uint64(0), uint64(1), uint32(0), uint64(0), zeros), "dimension of 0"},
		"overflow":           {table("t", uint32(3), huge, huge, huge, uint32(0), uint64(0), zeros), "below 2^63"},
		"tensor type":        {table("t", uint32(1), uint64(1), uint32(4), uint64(0), zeros), "type 4, which is unknown"},
		"row and block":      {table("t", uint32(1), uint64(33), uint32(8), uint64(0), zeros), "blocks of 32"},
		"too large":          {table("t", uint32(1), huge, uint32(0), uint64(0), zeros), "bytes are left in the file"},
		"offset":             {table("t", uint32(1), uint64(1), uint32(0), uint64(32), zeros), "begin at offset 32"},
		"data cut short":     {table("t", uint32(1), uint64(16), uint32(0), uint64(0), zeros[:70]), "cut short"},
		"tensor twice": {raw(magic, uint32(3), uint64(2), uint64(0), "t", uint32(1), uint64(8), uint32(0), uint64(0),
			"t", uint32(1), uint64(8), uint32(0), uint64(32), zeros), "there twice"},
	} {
		if _, err := read(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
	if _, err := read(table("t", uint32(1), uint64(16), uint32(0), uint64(0), zeros)); err != nil {
		t.Errorf("a tensor that fits: %v", err)
	}
	if _, err := gguf.ReadFile(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
}

// header returns the tiny model's file and where its header ends.
func header(t testing.TB) (file []byte, end int) {
	t.Helper()
	var buf bytes.Buffer
	if err := tiny.Write(&buf, 1, tiny.Options{}); err != nil {
		t.Fatal(err)
	}
	h, err := read(buf.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), int(h.DataOffset)
}

func TestBitFlips(t *testing.T) {
	file, end := header(t)
	rng := rand.New(rand.NewPCG(1, 1))
	const n = 4000
	accepted := 0
	for range n {
		data := slices.Clone(file[:end])
		for range 1 + rng.IntN(3) {
			data[rng.IntN(end)] ^= 1 << rng.IntN(8)
		}
		h, err := gguf.ReadHeader(bytes.NewReader(data), int64(len(file)))
		if err == nil && h.Check() == nil {
			accepted++
		}
	}
	t.Logf("%d of %d headers with 1 to 3 flipped bits are accepted", accepted, n)
	if accepted > n/10 {
		t.Errorf("%d of %d headers with flipped bits are accepted", accepted, n)
	}
}

func TestTruncatedHeaders(t *testing.T) {
	file, end := header(t)
	for n := 0; n < end; n += 7 {
		if _, err := read(file[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes are accepted", n, len(file))
		}
	}
	if _, err := read(file[:len(file)-100]); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("a file without its last 100 bytes: %v", err)
	}
}

func FuzzReadHeader(f *testing.F) {
	file, end := header(f)
	f.Add(file[:end])
	f.Add(file[:end/2])
	f.Add(file[:100])
	for _, at := range []int{4, 8, 16, 24, 60, 700, end - 64} {
		flipped := slices.Clone(file[:end])
		flipped[at] ^= 0x10
		f.Add(flipped)
	}
	f.Add(encode(f, []gguf.Pair{{"general.architecture", "x"}, {"a", []string{"b"}}}, tensor("t", gguf.F32, []float32{1}, 1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h, err := gguf.ReadHeader(bytes.NewReader(data), int64(len(data)+1<<20)) // as if tensor data followed
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20+20*uint64(len(data)) {
			t.Errorf("reading %d bytes allocated %d", len(data), used)
		}
		if err != nil {
			return
		}
		_ = h.Check()
		h.SpecialTokens()
		h.SpecialToken("eos")
		h.WeightType()
		h.KVBytesPerToken(gguf.Q8_0)
		_ = fmt.Sprint(h.TokenType(-1), h.ContextTokens(), h.TensorBytes(), h.ChatTemplate(), h.Name())
	})
}
