package redis

import (
	"encoding/binary"
	"errors"
	"strconv"

	"anytime/internal/store"
)

// The keys. What stands in braces decides on the node.

func (s *Store) runKey(id string) string    { return s.prefix + ":{" + id + "}:run" }
func (s *Store) eventsKey(id string) string { return s.prefix + ":{" + id + "}:events" }
func (s *Store) graveKey(id string) string  { return s.prefix + ":{" + id + "}:deleted" } // so that it is not taken for forgotten
func (s *Store) channel(id string) string   { return s.prefix + ":{" + id + "}" }

func (s *Store) allKey() string               { return s.prefix + ":{index}:all" }            // ids by creation, microseconds
func (s *Store) ownerKey(owner string) string { return s.prefix + ":{index}:owner:" + owner } // likewise

func (s *Store) sessionsKey() string              { return s.prefix + ":{sessions}" }                 // by when they die, milliseconds
func (s *Store) sessionKey(session string) string { return s.prefix + ":{sessions}:runs:" + session } // the runs it holds
func (s *Store) commandsOf(session string) string { return s.prefix + ":{sessions}:to:" + session }   // a channel
func (s *Store) allowanceKey(name string) string  { return s.prefix + ":{" + name + "}:allowance" }
func (s *Store) placesKey(name string) string     { return s.prefix + ":{" + name + "}:places" }
func baseField(fence int64) string                { return "base:" + strconv.FormatInt(fence, 10) } // what a lease had committed when it was lost

// A provisional offset has the lease's fence above the offset that the event is to have. Both together stay below 2^53, which is as far as
// JavaScript counts.
const fenceShift = 32

func provisional(offset, fence int64) int64 { return offset | fence<<fenceShift }

// split returns an offset and the fence under which it is provisional, 0 if it is not.
func split(offset int64) (plain, fence int64) {
	if offset < 0 {
		return 0, 0
	}
	return offset & (1<<fenceShift - 1), offset >> fenceShift
}

// encode packs an event: type, tokens, data, the first two with their lengths before them.
func encode(e store.Event) string {
	b := make([]byte, 0, 2*binary.MaxVarintLen64+len(e.Type)+3*len(e.Tokens)+1+len(e.Data))
	b = binary.AppendUvarint(b, uint64(len(e.Type)))
	b = append(b, e.Type...)
	b = binary.AppendUvarint(b, uint64(len(e.Tokens)))
	for _, t := range e.Tokens {
		b = binary.AppendVarint(b, int64(t))
	}
	return string(append(b, e.Data...))
}

var errEvent = errors.New("an event in Redis is not one of ours")

func decode(text string, offset int64) (store.Event, error) {
	b := []byte(text)
	e := store.Event{Offset: offset}
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return e, errEvent
	}
	e.Type, b = string(b[size:size+int(n)]), b[size+int(n):]
	n, size = binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return e, errEvent
	}
	b = b[size:]
	for range n {
		t, size := binary.Varint(b)
		if size <= 0 {
			return e, errEvent
		}
		e.Tokens, b = append(e.Tokens, int32(t)), b[size:]
	}
	if len(b) > 0 {
		e.Data = b
	}
	return e, nil
}
