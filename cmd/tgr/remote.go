package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vmapi"
)

// defaultAPI is where the VM API listens, ours and the original's.
const defaultAPI = "127.0.0.1:8080"

// originalType is the machine that the original asked its server for.
const originalType = "bionic-test"

// remoteConfig says how the VM management API is reached.
type remoteConfig struct {
	url    string // "": jobs run on this host's own machines
	token  string
	vmType string
	keep   bool // machines of jobs that failed, for an hour
	steps  bool // a snapshot before each step
}

func remoteOf(c *config) remoteConfig {
	return remoteConfig{url: c.get("vm-api-url"), token: strings.TrimSpace(c.get("vm-api-token")), vmType: c.get("vm-type")}
}

// remote gives jobs machines of the VM management API. It implements dispatch.Machines.
type remote struct {
	client *vmapi.Client
	host   string
	vmType string
	keep   bool
	steps  bool
	log    *slog.Logger
}

// openRemote has jobs run through the API.
func openRemote(ctx context.Context, c machineConfig, log *slog.Logger) (*machines, error) {
	client, err := vmapi.NewClient(vmapi.ClientConfig{URL: c.remote.url, Token: c.remote.token, Log: log})
	if err != nil {
		return nil, usageError{fmt.Errorf("FIRECRACKER_API_URL: %w", err)}
	}
	u, err := url.Parse(c.remote.url)
	if err != nil {
		return nil, usageError{err}
	}
	r := &remote{client: client, host: u.Host, vmType: cmp.Or(c.remote.vmType, originalType), keep: c.remote.keep, steps: c.remote.steps, log: log}
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	log.Info("jobs run on machines of the VM API", "url", u.Redacted())
	return &machines{Machines: r, labels: c.labels, egress: c.egress, close: func() error { return nil }, ready: r.ready}, nil
}

// check finds at once what waiting would not mend: a token that is refused. A server that does not answer may yet.
func (r *remote) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := r.ready(ctx)
	var refused *vmapi.Error
	switch {
	case err == nil:
	case errors.As(err, &refused) && refused.Status == http.StatusUnauthorized:
		return explain(err)
	default:
		r.log.Warn("the VM API does not answer: jobs wait for it", "error", err)
	}
	return nil
}

func (r *remote) ready(ctx context.Context) error {
	_, err := r.client.List(ctx) // which needs the token, where health does not
	return err
}

// Acquire makes a machine over the API. While the server is at capacity it waits.
func (r *remote) Acquire(ctx context.Context, s dispatch.Spec) (*dispatch.Machine, func(), error) {
	began := time.Now()
	m, err := r.client.Start(ctx, vmapi.CreateRequest{Name: s.ID, VMType: r.vmType, Labels: s.Labels})
	if err != nil {
		return nil, func() {}, fmt.Errorf("the VM API at %s: %w", r.host, err)
	}
	var kept atomic.Bool
	release := func() {
		if kept.Load() {
			return
		}
		if err := m.Close(); err != nil {
			r.log.Error("free a machine of the VM API", "vm", m.ID(), "error", err)
		}
	}
	v := m.VM()
	out := &dispatch.Machine{Machine: m, ID: m.ID(), Isolation: cmp.Or(v.Isolation, "fcctl-web") + " at " + r.host,
		Kernel: cmp.Or(v.Kernel, "unknown"), Boot: time.Since(began)}
	if p := v.Place; p != nil {
		out.Place = dispatch.Place{Dirs: runner.Dirs{Home: p.Home, Tools: p.Tools}, Nodes: p.Nodes, Env: p.Env, User: p.User, Engines: p.Engines}
	}
	out.Ended = func(c tgr.Conclusion) string {
		line, keep := r.ended(m, c)
		kept.Store(keep)
		return line
	}
	if r.steps {
		out.Before = func(ctx context.Context, number int, name string) string { return r.before(ctx, m.ID(), number, name) }
	}
	return out, release, nil
}

// before takes a snapshot of a machine before a step.
func (r *remote) before(ctx context.Context, id string, number int, name string) string {
	s, err := r.client.Snapshot(ctx, id, vmapi.SnapshotRequest{Name: fmt.Sprintf("before step %d", number), Description: name})
	if err != nil {
		return fmt.Sprintf("##[warning]No snapshot before step %d: %v", number, err)
	}
	return fmt.Sprintf("Snapshot %s before step %d: tgr vm rollback %s %s", s.SnapshotID, number, id, s.SnapshotID)
}

// keepFor is how long a machine whose job failed waits for somebody to look at it.
const keepFor = time.Hour

// ended tells the API how a job ended, and has the machine of one that failed kept where that was asked for.
func (r *remote) ended(m *vmapi.Machine, c tgr.Conclusion) (line string, kept bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if c == tgr.Failure && r.keep {
		if err := m.Keep(ctx, keepFor); err != nil {
			return fmt.Sprintf("##[warning]The machine could not be kept: %v", err), false
		}
		return fmt.Sprintf("Machine %s is kept for %v: tgr vm shell %s; tgr vm rm %s when you are done", m.ID(), keepFor, m.ID(), m.ID()), true
	}
	outcome := "failed"
	if c == tgr.Success {
		outcome = "completed"
	}
	if err := m.Outcome(ctx, outcome); err != nil {
		r.log.Debug("tell the VM API how a job ended", "vm", m.ID(), "error", err)
	}
	return "", false
}

// keyFile is where the key of the VM API's tokens is, which the daemon makes when it first starts.
func keyFile(c *config) string { return filepath.Join(c.get("data-dir"), "vmd.key") }

// apiClient is a client for a person: the settings' address and token. On the daemon's own host, who may read its key
// needs no token.
func apiClient(c *config, log *slog.Logger) (*vmapi.Client, error) {
	r := remoteOf(c)
	if r.token == "" {
		key, err := os.ReadFile(keyFile(c))
		switch {
		case err == nil:
			if r.token, err = vmapi.NewToken(key, userName(), time.Hour); err != nil {
				return nil, err
			}
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission):
			return nil, err
		}
	}
	client, err := vmapi.NewClient(vmapi.ClientConfig{URL: cmp.Or(r.url, "http://"+defaultAPI), Token: r.token, Log: log})
	if err != nil {
		return nil, usageError{err}
	}
	return client, nil
}

func userName() string { return cmp.Or(os.Getenv("USER"), "operator") }

// explain says what to do about an error of the API, and whose fault it is.
func explain(err error) error {
	var refused *vmapi.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused) && refused.Status == http.StatusUnauthorized:
		return usagef("%v; tgr vmd token, run on the daemon's host, issues one", err)
	case errors.As(err, &refused) && refused.Status < 500:
		return usageError{err}
	}
	return ours(err)
}
