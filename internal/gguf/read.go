package gguf

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"
	"strings"
)

// Limits of a header. Real files stay far below: a vocabulary of 260,000 tokens takes 10 MB, the largest models have some
// thousand tensors. llama.cpp compares every key and every tensor name with all before it, hence the limits on counts.
const (
	maxHeader  = 256 << 20 // bytes
	maxString  = 16 << 20  // bytes
	maxKeys    = 4096
	maxTensors = 16384
	maxName    = 63 // bytes of a tensor's name, llama.cpp's GGML_MAX_NAME less the final zero
)

// Metadata value types of the format.
const (
	kindUint8 = iota
	kindInt8
	kindUint16
	kindInt16
	kindUint32
	kindInt32
	kindFloat32
	kindBool
	kindString
	kindArray
	kindUint64
	kindInt64
	kindFloat64
)

// ReadFile reads the header of a GGUF file.
func ReadFile(path string) (*Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	h, err := ReadHeader(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return h, nil
}

// ReadHeader reads a header from the beginning of a GGUF file of size bytes. It checks the form of everything: counts, lengths,
// types, names, and that the tensors' data follow one another, aligned, within the file. Memory stays in proportion to the bytes
// really read, whatever lengths they claim.
func ReadHeader(r io.Reader, size int64) (*Header, error) {
	d := &decoder{r: bufio.NewReader(r), left: uint64(max(size, 0))}
	h := &Header{Alignment: 32, values: map[string]any{}}

	var magic [4]byte
	if err := d.read(magic[:]); err != nil || string(magic[:]) != "GGUF" {
		return nil, fmt.Errorf("not a GGUF file: it begins with %q, not \"GGUF\"", magic)
	}
	h.Version = d.uint32()
	tensors, keys := d.uint64(), d.uint64()
	switch {
	case d.err != nil:
		return nil, d.err
	case h.Version != 2 && h.Version != 3:
		return nil, fmt.Errorf("GGUF version is %d: versions 2 and 3, little endian, can be read", h.Version)
	case tensors > maxTensors:
		return nil, fmt.Errorf("the file claims %d tensors: at most %d can be right", tensors, maxTensors)
	case keys > maxKeys:
		return nil, fmt.Errorf("the file claims %d metadata keys: at most %d can be right", keys, maxKeys)
	}
	for i := range keys {
		if err := d.pair(h); err != nil {
			return nil, fmt.Errorf("metadata key %d of %d: %w", i+1, keys, err)
		}
	}
	if v, ok := h.values["general.alignment"]; ok {
		n, ok := v.(uint32)
		if !ok || n < 8 || n > 1<<16 || bits.OnesCount32(n) != 1 {
			return nil, fmt.Errorf("general.alignment is %v (%T): it must be a uint32, a power of two from 8 to 65536", v, v)
		}
		h.Alignment = uint64(n)
	}
	names := map[string]bool{}
	var next uint64 // where the next tensor's data must begin
	for i := range tensors {
		t, err := d.tensor()
		if err != nil {
			return nil, fmt.Errorf("tensor %d of %d: %w", i+1, tensors, err)
		}
		if names[t.Name] {
			return nil, fmt.Errorf("tensor %q is there twice", t.Name)
		}
		if t.Offset != next {
			return nil, fmt.Errorf("tensor %q: its data begin at offset %d, but the tensor before it ends at %d", t.Name, t.Offset, next)
		}
		end := t.Offset + t.Bytes() // neither is above size: no overflow
		if end > uint64(size) {
			return nil, cutShort(size, t.Name, end)
		}
		names[t.Name] = true
		next = pad(end, h.Alignment)
		h.Tensors = append(h.Tensors, t)
	}
	h.DataOffset = pad(d.off, h.Alignment)
	if n := len(h.Tensors); n > 0 {
		last := h.Tensors[n-1]
		if end := h.DataOffset + last.Offset + last.Bytes(); end > uint64(size) {
			return nil, cutShort(size, last.Name, end)
		}
	}
	return h, nil
}

func cutShort(size int64, tensor string, end uint64) error {
	return fmt.Errorf("the file has %d bytes, but tensor %s ends behind byte %d: it is cut short", size, tensor, end)
}

// pad rounds n up to a multiple of alignment, a power of two.
func pad(n, alignment uint64) uint64 { return (n + alignment - 1) &^ (alignment - 1) }

// decoder reads a file's header. After an error it returns zeros; err keeps the first one.
type decoder struct {
	r    *bufio.Reader
	off  uint64 // bytes read
	left uint64 // bytes of the file behind off
	err  error
	buf  [4096]byte
}

var errCutShort = errors.New("the file ends in the middle of its header")

func (d *decoder) read(b []byte) error {
	if d.err != nil {
		return d.err
	}
	n := uint64(len(b))
	switch {
	case n > d.left:
		d.err = errCutShort
	case d.off+n > maxHeader:
		d.err = fmt.Errorf("the header is longer than %d bytes", maxHeader)
	default:
		if _, err := io.ReadFull(d.r, b); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = errCutShort
			}
			d.err = err
		}
		d.off += n
		d.left -= n
	}
	return d.err
}

func (d *decoder) uint32() uint32 {
	var b [4]byte
	if d.read(b[:]) != nil {
		return 0
	}
	return binary.LittleEndian.Uint32(b[:])
}

func (d *decoder) uint64() uint64 {
	var b [8]byte
	if d.read(b[:]) != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

// string reads a length and as many bytes. It grows as bytes arrive, not by the length that was claimed.
func (d *decoder) string() (string, error) {
	n := d.uint64()
	if d.err != nil {
		return "", d.err
	}
	if n > maxString || n > d.left {
		d.err = fmt.Errorf("a string claims %d bytes, with %d left in the file and %d allowed", n, d.left, maxString)
		return "", d.err
	}
	if n <= uint64(len(d.buf)) {
		err := d.read(d.buf[:n])
		return string(d.buf[:n]), err
	}
	var all bytes.Buffer
	for n > 0 {
		b := d.buf[:min(n, uint64(len(d.buf)))]
		if err := d.read(b); err != nil {
			return "", err
		}
		all.Write(b)
		n -= uint64(len(b))
	}
	return all.String(), nil
}

// pair reads one metadata key and its value into h.
func (d *decoder) pair(h *Header) error {
	key, err := d.string()
	if err != nil {
		return err
	}
	if !printable(key) {
		return fmt.Errorf("%.80q is not a key: it must be printable ASCII without spaces", key)
	}
	if _, ok := h.values[key]; ok {
		return fmt.Errorf("%s is there twice", key)
	}
	v, err := d.value(d.uint32())
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	h.keys = append(h.keys, key)
	h.values[key] = v
	return nil
}

func (d *decoder) value(kind uint32) (any, error) {
	switch kind {
	case kindUint8:
		return scalar[uint8](d)
	case kindInt8:
		return scalar[int8](d)
	case kindUint16:
		return scalar[uint16](d)
	case kindInt16:
		return scalar[int16](d)
	case kindUint32:
		return scalar[uint32](d)
	case kindInt32:
		return scalar[int32](d)
	case kindFloat32:
		return scalar[float32](d)
	case kindUint64:
		return scalar[uint64](d)
	case kindInt64:
		return scalar[int64](d)
	case kindFloat64:
		return scalar[float64](d)
	case kindString:
		return d.string()
	case kindBool:
		b, err := array[uint8](d, 1, toBool)
		if err != nil {
			return nil, err
		}
		return b[0], nil
	case kindArray:
		return d.array()
	}
	if d.err != nil {
		return nil, d.err
	}
	return nil, fmt.Errorf("its type is %d: a metadata value has type 0 to 12", kind)
}

func (d *decoder) array() (any, error) {
	kind, n := d.uint32(), d.uint64()
	if d.err != nil {
		return nil, d.err
	}
	switch kind {
	case kindUint8:
		return array(d, n, same[uint8])
	case kindInt8:
		return array(d, n, same[int8])
	case kindUint16:
		return array(d, n, same[uint16])
	case kindInt16:
		return array(d, n, same[int16])
	case kindUint32:
		return array(d, n, same[uint32])
	case kindInt32:
		return array(d, n, same[int32])
	case kindFloat32:
		return array(d, n, same[float32])
	case kindUint64:
		return array(d, n, same[uint64])
	case kindInt64:
		return array(d, n, same[int64])
	case kindFloat64:
		return array(d, n, same[float64])
	case kindBool:
		return array(d, n, toBool)
	case kindString:
		if n > d.left/8 { // each has at least its length
			return nil, fmt.Errorf("an array claims %d strings, with %d bytes left in the file", n, d.left)
		}
		var all []string
		for range n {
			s, err := d.string()
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
		return all, nil
	case kindArray:
		return nil, errors.New("an array of arrays: llama.cpp reads none")
	}
	return nil, fmt.Errorf("its elements have type %d: a metadata value has type 0 to 12", kind)
}

type number interface {
	uint8 | int8 | uint16 | int16 | uint32 | int32 | uint64 | int64 | float32 | float64
}

func scalar[T number](d *decoder) (any, error) {
	a, err := array(d, 1, same[T])
	if err != nil {
		return nil, err
	}
	return a[0], nil
}

func same[T number](v T) (T, error) { return v, nil }

func toBool(v uint8) (bool, error) {
	if v > 1 {
		return false, fmt.Errorf("a boolean is %d: it must be 0 or 1", v)
	}
	return v == 1, nil
}

// array reads n numbers and converts each, in pieces, so that memory grows as bytes arrive.
func array[T number, U any](d *decoder, n uint64, convert func(T) (U, error)) ([]U, error) {
	var zero T
	width := uint64(binary.Size(zero))
	if n > d.left/width {
		return nil, fmt.Errorf("it claims %d values of %d bytes, with %d bytes left in the file", n, width, d.left)
	}
	var all []U
	piece := make([]T, min(n, 512))
	raw := make([]byte, uint64(len(piece))*width)
	for n > 0 {
		k := min(n, uint64(len(piece)))
		if err := d.read(raw[:k*width]); err != nil {
			return nil, err
		}
		if _, err := binary.Decode(raw[:k*width], binary.LittleEndian, piece[:k]); err != nil {
			return nil, err
		}
		for _, v := range piece[:k] {
			u, err := convert(v)
			if err != nil {
				return nil, err
			}
			all = append(all, u)
		}
		n -= k
	}
	return all, nil
}

// tensor reads one row of the tensor table.
func (d *decoder) tensor() (TensorInfo, error) {
	var t TensorInfo
	name, err := d.string()
	if err != nil {
		return t, err
	}
	if !printable(name) || len(name) > maxName {
		return t, fmt.Errorf("%.80q is not a tensor name: it must be printable ASCII, at most %d bytes", name, maxName)
	}
	t.Name = name
	dims := d.uint32()
	if d.err == nil && (dims < 1 || dims > 4) {
		return t, fmt.Errorf("%s has %d dimensions: it must have 1 to 4", name, dims)
	}
	elements := uint64(1)
	for range dims {
		n := d.uint64()
		hi, lo := bits.Mul64(elements, n)
		if d.err == nil && (n == 0 || hi != 0 || lo > math.MaxInt64) {
			return t, fmt.Errorf("%s has a dimension of %d: its size must be positive and below 2^63", name, n)
		}
		elements = lo
		t.Dims = append(t.Dims, n)
	}
	t.Type = Type(d.uint32())
	t.Offset = d.uint64()
	if d.err != nil {
		return t, d.err
	}
	l, ok := layouts[t.Type]
	if !ok {
		return t, fmt.Errorf("%s has type %d, which is unknown", name, uint32(t.Type))
	}
	if t.Dims[0]%l.block != 0 {
		return t, fmt.Errorf("%s has rows of %d values: %s stores blocks of %d", name, t.Dims[0], l.name, l.block)
	}
	if blocks := elements / l.block; blocks > d.left/l.bytes {
		return t, fmt.Errorf("%s needs %d blocks of %d bytes, but only %d bytes are left in the file", name, blocks, l.bytes, d.left)
	}
	return t, nil
}

// printable reports whether s is not empty and consists of visible ASCII.
func printable(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
