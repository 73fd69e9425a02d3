package vmapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// answerWithin is how long an agent may take to answer after a rollback, or after its machine stood still.
const answerWithin = 30 * time.Second

// snapshotter is the machine of a request as one that can be rolled back.
func (s *Server) snapshotter(r *request) (*machine, vm.Snapshotter, error) {
	m, err := s.usable(r.PathValue("id"))
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	made, isolation := m.vm, m.isolation
	m.mu.Unlock()
	snap, ok := made.(vm.Snapshotter)
	if !ok {
		return nil, nil, unsupported("%s is a machine of %s, which has no snapshots", m.id, isolation)
	}
	return m, snap, nil
}

func (m *machine) snapshotView(v vm.Snapshot) Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Snapshot{SnapshotID: v.ID, ID: v.ID, VMID: m.id, Name: v.Name, Description: m.descriptions[v.ID], CreatedAt: v.Taken,
		DurationMS: ms(v.Paused), Bytes: v.Bytes}
}

func (s *Server) listSnapshots(w http.ResponseWriter, r *request) error {
	m, snap, err := s.snapshotter(r)
	if err != nil {
		return err
	}
	out := Snapshots{VMID: m.id, Snapshots: []Snapshot{}}
	for _, v := range snap.Snapshots() {
		out.Snapshots = append(out.Snapshots, m.snapshotView(v))
	}
	s.json(w, http.StatusOK, out)
	return nil
}

func (s *Server) snapshot(w http.ResponseWriter, r *request) error {
	m, snap, err := s.snapshotter(r)
	if err != nil {
		return err
	}
	var req SnapshotRequest
	if err := body(r, &req, true); err != nil {
		return err
	}
	if len(req.Name) > maxLabel || len(req.Description) > maxCommand {
		return invalid("a name may have %d bytes, a description %d", maxLabel, maxCommand)
	}
	m.dialing.Lock()
	defer m.dialing.Unlock()
	taken, err := snap.Snapshot(r.Context(), req.Name)
	if err != nil {
		return fmt.Errorf("take a snapshot of %s: %w", m.id, err)
	}
	m.session.Snapshot()
	m.mu.Lock()
	m.at = taken.ID
	kept := map[string]string{taken.ID: req.Description} // a machine drops old snapshots by itself
	for _, v := range snap.Snapshots() {
		if d, ok := m.descriptions[v.ID]; ok {
			kept[v.ID] = d
		}
	}
	m.descriptions = kept
	m.mu.Unlock()
	s.json(w, http.StatusCreated, m.snapshotView(taken))
	return nil
}

func (s *Server) rollback(w http.ResponseWriter, r *request) error {
	m, snap, err := s.snapshotter(r)
	if err != nil {
		return err
	}
	id := r.PathValue("snapshot")
	began := time.Now()
	// What was begun is brought to its end though the sender has gone: half a rollback is no machine.
	ctx := context.WithoutCancel(r.Context())
	m.dialing.Lock()
	defer m.dialing.Unlock()
	err = snap.Rollback(ctx, id)
	if errors.Is(err, vm.ErrNoSnapshot) {
		return errorf(http.StatusNotFound, "not_found", "%s has no snapshot %q, any more", m.id, cut(id, maxLabel))
	}
	if err != nil {
		return fmt.Errorf("roll %s back to %s: %w", m.id, cut(id, maxLabel), err)
	}
	if err := m.wake(ctx); err != nil {
		return fmt.Errorf("after the rollback of %s: %w", m.id, err)
	}
	if err := m.session.Apply(vm.SessionRollBack); err != nil {
		return err
	}
	m.mu.Lock()
	m.at = id
	m.mu.Unlock()
	s.json(w, http.StatusOK, Rollback{Message: "rolled back", SnapshotID: id, VMID: m.id, DurationMS: ms(time.Since(began))})
	return nil
}

// wake opens a new stream to an agent whose machine was put back or stood still, and tells it the time. A machine
// whose agent does not answer is freed. It is called with dialing held.
func (m *machine) wake(ctx context.Context) error {
	m.mu.Lock()
	old, made := m.agent, m.vm
	m.mu.Unlock()
	old.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, answerWithin, errors.New("the agent does not answer"))
	defer cancel()
	fresh, err := guest.Dial(ctx, made.Dial)
	if err == nil && !m.back.Shared {
		entropy := make([]byte, 64)
		rand.Read(entropy)
		if err = fresh.Prepare(ctx, guest.Identity{Hostname: m.id, Time: time.Now(), Entropy: entropy}); err != nil {
			fresh.Close()
		}
	}
	if err != nil {
		m.stop(&stopped{"its agent did not answer after a rollback or a pause: " + err.Error()})
		return err
	}
	m.mu.Lock()
	m.agent = fresh
	m.mu.Unlock()
	return nil
}

func (s *Server) pauser(r *request) (*machine, vm.Pauser, error) {
	m, err := s.find(r.PathValue("id"))
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	made, isolation := m.vm, m.isolation
	m.mu.Unlock()
	p, ok := made.(vm.Pauser)
	if !ok && made != nil {
		return nil, nil, unsupported("%s is a machine of %s, which cannot stand still", m.id, isolation)
	}
	return m, p, nil
}

// pause has a machine stand still in which nothing runs.
func (s *Server) pause(w http.ResponseWriter, r *request) error {
	m, p, err := s.pauser(r)
	if err != nil {
		return err
	}
	m.dialing.Lock()
	defer m.dialing.Unlock()
	m.mu.Lock()
	running, state := len(m.execs), m.state
	m.mu.Unlock()
	if !state.usable() {
		return m.not("paused")
	}
	if running > 0 {
		return errorf(http.StatusConflict, "conflict", "%d commands run in %s: their streams would break", running, m.id)
	}
	if err := m.session.Apply(vm.SessionPause); err != nil {
		return err
	}
	if err := p.Pause(r.Context()); err != nil {
		return errors.Join(fmt.Errorf("pause %s: %w", m.id, err), m.session.Apply(vm.SessionResume))
	}
	m.set(evPause, "")
	s.json(w, http.StatusOK, m.view())
	return nil
}

func (s *Server) resume(w http.ResponseWriter, r *request) error {
	m, p, err := s.pauser(r)
	if err != nil {
		return err
	}
	m.dialing.Lock()
	defer m.dialing.Unlock()
	m.mu.Lock()
	state, leased := m.state, !m.leased.IsZero()
	m.mu.Unlock()
	if state != Paused {
		return m.not("resumed")
	}
	ctx := context.WithoutCancel(r.Context())
	if err := p.Resume(ctx); err != nil {
		return fmt.Errorf("resume %s: %w", m.id, err)
	}
	if err := m.wake(ctx); err != nil {
		return fmt.Errorf("after the pause of %s: %w", m.id, err)
	}
	if err := m.session.Apply(vm.SessionResume); err != nil {
		return err
	}
	m.set(evResume, "")
	if leased {
		m.set(evLease, "")
	}
	s.json(w, http.StatusOK, m.view())
	return nil
}
