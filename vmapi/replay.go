package vmapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"net/http"
	"sync"
	"time"
)

const (
	keepReplay  = 24 * time.Hour
	maxReplays  = 10_000
	maxReplayed = 1 << 20 // bytes of an answer that is kept; what is larger is not repeated
)

// replays keeps the answers to requests with an Idempotency-Key, so that one which is sent again does nothing twice.
type replays struct {
	mu   sync.Mutex
	kept map[string]*answer
}

// answer is one that is kept, or awaited.
type answer struct {
	request [sha256.Size]byte
	at      time.Time
	over    chan struct{} // closed when the rest is there
	keep    bool
	status  int
	header  http.Header
	body    bytes.Buffer
}

// replay serves a request, or repeats the answer to the same one before.
func (s *Server) replay(w http.ResponseWriter, r *request, rt route) error {
	key := r.Header.Get("Idempotency-Key")
	if err := label("Idempotency-Key", key); err != nil {
		return invalid("%v", err)
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
	sum := sha256.Sum256(append([]byte(r.Method+" "+r.URL.Path+"\n"), b...))
	name := r.user + "\n" + key
	for {
		a, first, err := s.replays.enter(name, sum)
		if err != nil {
			return err
		}
		if first {
			return s.remember(w, r, rt, name, a)
		}
		select {
		case <-a.over:
		case <-r.Context().Done():
			return context.Cause(r.Context())
		}
		if a.keep {
			w.Header().Set("Idempotency-Replayed", "true")
			maps.Copy(w.Header(), a.header)
			w.WriteHeader(a.status)
			w.Write(a.body.Bytes())
			return nil
		}
	}
}

// remember serves a request, and keeps the answer if it is one that would not change.
func (s *Server) remember(w http.ResponseWriter, r *request, rt route, name string, a *answer) error {
	a.header = http.Header{}
	rec := &recorder{ResponseWriter: w, a: a}
	defer func() {
		a.keep = a.status >= 200 && a.status < 300 && a.body.Len() <= maxReplayed
		s.replays.leave(name, a)
	}()
	// What was begun is brought to its end though the sender has gone: it will ask again.
	r.Request = r.WithContext(context.WithoutCancel(r.Context()))
	return rt.serve(s, rec, r)
}

func (p *replays) enter(name string, sum [sha256.Size]byte) (*answer, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.kept[name]; a != nil && time.Since(a.at) < keepReplay {
		if a.request != sum {
			return nil, false, errorf(http.StatusUnprocessableEntity, "invalid", "this Idempotency-Key was used for another request, %s…", hex.EncodeToString(a.request[:4]))
		}
		return a, false, nil
	}
	for n, a := range p.kept {
		if time.Since(a.at) >= keepReplay {
			delete(p.kept, n)
		}
	}
	if len(p.kept) >= maxReplays {
		e := errorf(http.StatusTooManyRequests, "limit", "%d keys are remembered", len(p.kept))
		e.RetryAfter = time.Minute
		return nil, false, e
	}
	if p.kept == nil {
		p.kept = map[string]*answer{}
	}
	a := &answer{request: sum, at: time.Now(), over: make(chan struct{})}
	p.kept[name] = a
	return a, true, nil
}

func (p *replays) leave(name string, a *answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !a.keep {
		delete(p.kept, name)
	}
	close(a.over)
}

// recorder writes an answer and keeps it.
type recorder struct {
	http.ResponseWriter
	a *answer
}

// WriteHeader notes the status.
func (w *recorder) WriteHeader(status int) {
	w.a.status = status
	for _, k := range []string{"Content-Type", "Location"} {
		if v := w.Header().Get(k); v != "" {
			w.a.header.Set(k, v)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write keeps what it writes, up to a bound.
func (w *recorder) Write(b []byte) (int, error) {
	if w.a.body.Len() <= maxReplayed {
		w.a.body.Write(b)
	}
	return w.ResponseWriter.Write(b)
}
