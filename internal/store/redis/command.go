package redis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"anytime/internal/store"
)

const (
	commandPatience = 30 * time.Second // for a reply: an answer may have to be decoded
	commandAgain    = time.Second      // after so long a command is sent again, to who executes the run then
)

// message is what servers send one another.
type message struct {
	Call  string `json:"call"` // the same each time that a command is sent
	From  string `json:"from,omitempty"`
	Run   string `json:"run,omitempty"`
	Body  []byte `json:"body"`
	Reply bool   `json:"reply,omitempty"`
}

// order is a command of another server's.
type order struct {
	came  time.Time
	reply []byte // nil: it is being obeyed
}

// Obey implements store.Shared.
func (s *Store) Obey(obey func(ctx context.Context, id string, command []byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.obey = obey
}

// Ask implements store.Shared.
func (s *Store) Ask(ctx context.Context, id string, command []byte) ([]byte, error) {
	reply, err := s.ask(ctx, id, command)
	if err != nil {
		return nil, fmt.Errorf("ask who executes run %q: %w", id, err)
	}
	return reply, nil
}

func (s *Store) ask(ctx context.Context, id string, command []byte) ([]byte, error) {
	bounded, cancel := context.WithTimeout(ctx, commandPatience)
	defer cancel()
	call, reply := rand.Text(), make(chan []byte, 1)
	s.mu.Lock()
	s.asked[call] = reply
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.asked, call)
	}()
	text, err := json.Marshal(message{Call: call, From: s.session, Run: id, Body: command})
	if err != nil {
		panic(err) // it always marshals
	}
	again := time.NewTicker(commandAgain)
	defer again.Stop()
	for {
		if err := s.usable(ctx); err != nil {
			return nil, err
		}
		// Asked each time, for it may be taken over meanwhile.
		values, err := s.client.HMGet(bounded, s.runKey(id), "state", "session").Result()
		if err == nil {
			state, ok := values[0].(string)
			session, _ := values[1].(string)
			switch {
			case !ok:
				return nil, store.ErrNotFound
			case state != string(store.Running):
				return nil, store.ErrIdle
			}
			err = s.client.Publish(bounded, s.commandsOf(session), text).Err()
		}
		if err != nil && bounded.Err() == nil {
			return nil, s.failure(ctx, err)
		}
		select {
		case body := <-reply:
			return body, nil
		case <-again.C:
		case <-s.closing:
			return nil, store.ErrClosed
		case <-bounded.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("%w: the server that executes the run does not answer", store.ErrUnavailable)
		}
	}
}

// deliver takes in a message.
func (s *Store) deliver(text string) {
	var m message
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		s.log.Warn("a message from another server cannot be read", "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.Reply {
		if reply := s.asked[m.Call]; reply != nil {
			select {
			case reply <- m.Body:
			default: // it came twice
			}
		}
		return
	}
	const most = 1024 // commands beyond these are ignored; they come again
	o := s.served[m.Call]
	switch {
	case o != nil && o.reply != nil:
		s.wg.Go(func() { s.reply(m, o.reply) })
	case o == nil && s.obey != nil && len(s.served) < most:
		o = &order{came: time.Now()}
		s.served[m.Call] = o
		obey := s.obey
		s.wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, commandPatience)
			defer cancel()
			body := obey(ctx, m.Run, m.Body)
			s.mu.Lock()
			o.reply = body
			s.mu.Unlock()
			s.reply(m, body)
		})
	}
}

// reply answers a command. Should the reply get lost, the command comes again.
func (s *Store) reply(m message, body []byte) {
	text, err := json.Marshal(message{Call: m.Call, Body: body, Reply: true})
	if err != nil {
		panic(err) // it always marshals
	}
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	if err := s.client.Publish(ctx, s.commandsOf(m.From), text).Err(); err != nil {
		s.log.Warn("a reply to another server did not get through", "run", m.Run, "error", err)
	}
}
