package server

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"anytime/api"
)

func (s *Server) healthz(w http.ResponseWriter, _ *call) error {
	return s.writeJSON(w, http.StatusOK, api.Health{Status: api.Ok})
}

// readyz asks engine and store, at once and not for ever. A check that is excluded is told all the same, and does not count.
func (s *Server) readyz(w http.ResponseWriter, c *call) error {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	asked := []struct {
		name string
		ask  func(context.Context) error
	}{{"engine", s.cfg.Ready}, {"store", s.cfg.Store.Ready}}
	answers := make([]error, len(asked))
	var wg sync.WaitGroup
	for i, a := range asked {
		wg.Go(func() { answers[i] = a.ask(ctx) })
	}
	wg.Wait()
	checks := map[string]string{}
	health, status := api.Health{Status: api.Ok, Checks: &checks}, http.StatusOK
	for i, a := range asked {
		checks[a.name] = "ok"
		if err := answers[i]; err != nil {
			// What clients may see: the cause names files.
			checks[a.name] = publicError(err).message
			s.log.LogAttrs(c.Context(), slog.LevelWarn, "not ready", slog.String("check", a.name), slog.Any("error", err))
			if a.name != c.query.Get("exclude") {
				health.Status, status = api.Unavailable, http.StatusServiceUnavailable
			}
		}
	}
	return s.writeJSON(w, status, health)
}
