package gguf

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
)

// Pair is one metadata key with its value: uint8 … float64, bool, string, or a slice of one of these.
type Pair struct {
	Key   string
	Value any
}

// Tensor is one tensor to be written.
type Tensor struct {
	Name string
	Type Type     // F32, F16 or Q8_0
	Dims []uint64 // as in TensorInfo
	// Values is called when the tensor's turn has come, so that not all need be in memory at once.
	Values func() ([]float32, error)
}

const writeAlignment = 32

// Write writes a GGUF file of version 3.
func Write(w io.Writer, meta []Pair, tensors []Tensor) error {
	e := &encoder{w: bufio.NewWriterSize(w, 1<<16)}
	e.raw([]byte("GGUF"))
	e.put(uint32(3))
	e.put(uint64(len(tensors)))
	e.put(uint64(len(meta)))
	for _, p := range meta {
		e.string(p.Key)
		if err := e.value(p.Value); err != nil {
			return fmt.Errorf("write %s: %w", p.Key, err)
		}
	}
	var offset uint64
	for _, t := range tensors {
		l := layouts[t.Type]
		if _, ok := fileTypes[t.Type]; !ok {
			return fmt.Errorf("write %s: cannot write %s: F32, F16 and Q8_0 can be", t.Name, t.Type)
		}
		if len(t.Dims) == 0 || t.Dims[0]%l.block != 0 {
			return fmt.Errorf("write %s: dimensions %v: %s stores rows in blocks of %d values", t.Name, t.Dims, t.Type, l.block)
		}
		e.string(t.Name)
		e.put(uint32(len(t.Dims)))
		for _, d := range t.Dims {
			e.put(d)
		}
		e.put(uint32(t.Type))
		e.put(offset)
		offset = pad(offset+t.info().Bytes(), writeAlignment)
	}
	e.pad()
	for _, t := range tensors {
		values, err := t.Values()
		if err != nil {
			return fmt.Errorf("write %s: %w", t.Name, err)
		}
		if want := t.info().Elements(); uint64(len(values)) != want {
			return fmt.Errorf("write %s: got %d values for dimensions %v, which hold %d", t.Name, len(values), t.Dims, want)
		}
		e.tensor(t.Type, values)
		e.pad()
	}
	if e.err == nil {
		e.err = e.w.Flush()
	}
	return e.err
}

func (t Tensor) info() TensorInfo { return TensorInfo{Name: t.Name, Type: t.Type, Dims: t.Dims} }

// WriteFile writes a file in one step for everybody else: what write writes goes to a temporary file in the same folder, which
// takes path's place once all of it is on the disk. After an error path is as it was.
func WriteFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil // the file is in place; only the folder's entry could not be synced
	}
	defer dir.Close()
	_ = dir.Sync() // refused by some file systems
	return nil
}

// encoder writes; after an error it does nothing.
type encoder struct {
	w   *bufio.Writer
	off uint64
	err error
}

func (e *encoder) raw(b []byte) {
	if e.err == nil {
		_, e.err = e.w.Write(b)
		e.off += uint64(len(b))
	}
}

func (e *encoder) pad() {
	e.raw(make([]byte, pad(e.off, writeAlignment)-e.off))
}

func (e *encoder) put(v any) {
	if e.err == nil {
		e.err = binary.Write(e.w, binary.LittleEndian, v)
		e.off += uint64(binary.Size(v))
	}
}

func (e *encoder) string(s string) {
	e.put(uint64(len(s)))
	e.raw([]byte(s))
}

func (e *encoder) value(v any) error {
	kind, n := kindOf(v)
	if kind < 0 {
		return fmt.Errorf("a %T is not a metadata value", v)
	}
	if n >= 0 {
		e.put(uint32(kindArray))
	}
	e.put(uint32(kind))
	if n >= 0 {
		e.put(uint64(n))
	}
	switch v := v.(type) {
	case string:
		e.string(v)
	case []string:
		for _, s := range v {
			e.string(s)
		}
	default:
		e.put(v)
	}
	return nil
}

// kindOf returns the format's number of a value's type (of its elements, if it is an array) and the array's length, -1 for a scalar.
func kindOf(v any) (kind, n int) {
	switch v := v.(type) {
	case uint8:
		return kindUint8, -1
	case int8:
		return kindInt8, -1
	case uint16:
		return kindUint16, -1
	case int16:
		return kindInt16, -1
	case uint32:
		return kindUint32, -1
	case int32:
		return kindInt32, -1
	case uint64:
		return kindUint64, -1
	case int64:
		return kindInt64, -1
	case float32:
		return kindFloat32, -1
	case float64:
		return kindFloat64, -1
	case bool:
		return kindBool, -1
	case string:
		return kindString, -1
	case []uint8:
		return kindUint8, len(v)
	case []int8:
		return kindInt8, len(v)
	case []uint16:
		return kindUint16, len(v)
	case []int16:
		return kindInt16, len(v)
	case []uint32:
		return kindUint32, len(v)
	case []int32:
		return kindInt32, len(v)
	case []uint64:
		return kindUint64, len(v)
	case []int64:
		return kindInt64, len(v)
	case []float32:
		return kindFloat32, len(v)
	case []float64:
		return kindFloat64, len(v)
	case []bool:
		return kindBool, len(v)
	case []string:
		return kindString, len(v)
	}
	return -1, 0
}

// tensor writes values block by block.
func (e *encoder) tensor(t Type, values []float32) {
	const piece = 4096 // a multiple of every block
	var buf []byte
	for len(values) > 0 && e.err == nil {
		n := min(len(values), piece)
		buf = buf[:0]
		switch t {
		case F32:
			for _, v := range values[:n] {
				buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(v))
			}
		case F16:
			for _, v := range values[:n] {
				buf = binary.LittleEndian.AppendUint16(buf, float16(v))
			}
		case Q8_0:
			for i := 0; i < n; i += 32 {
				buf = appendQ8(buf, values[i:i+32])
			}
		}
		e.raw(buf)
		values = values[n:]
	}
}

// appendQ8 appends a block of Q8_0: a scale in half precision, then 32 values in units of it.
func appendQ8(buf []byte, block []float32) []byte {
	var most float32
	for _, v := range block {
		most = max(most, float32(math.Abs(float64(v))))
	}
	scale := most / 127
	buf = binary.LittleEndian.AppendUint16(buf, float16(scale))
	for _, v := range block {
		var q float64
		if scale > 0 {
			q = math.RoundToEven(float64(v / scale))
		}
		buf = append(buf, byte(int8(q)))
	}
	return buf
}

// float16 rounds to half precision, ties to even. What is too large becomes infinite.
func float16(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b >> 16 & 0x8000)
	exp := int(b>>23&0xff) - 127
	mant := b&0x7fffff | 0x800000
	switch {
	case exp == 128 && mant != 0x800000:
		return sign | 0x7e00 // NaN
	case exp > 15:
		return sign | 0x7c00
	case exp < -25:
		return sign
	}
	shift := uint(13)
	half := uint32(0)
	if exp < -14 { // subnormal
		shift += uint(-14 - exp)
	} else {
		half = uint32(exp+14) << 10 // the mantissa's leading one adds 1 to the exponent
	}
	q := mant >> shift
	rest, tie := mant&(1<<shift-1), uint32(1)<<(shift-1)
	if rest > tie || rest == tie && q&1 == 1 {
		q++
	}
	return sign | uint16(half+q) // a carry runs into the exponent, as it should
}
