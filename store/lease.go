package store

import (
	"context"
	"errors"
	"time"

	"github.com/terraphim/tgr"
)

// ErrNothing is what Claim returns when no job can be claimed.
var ErrNothing = errors.New("store: no job to claim")

// ClaimRequest says who wants a job, and which.
type ClaimRequest struct {
	Owner string        // required: the claiming node or worker, for OwnerGone
	Lease time.Duration // required: how long the claim holds without a Beat
	Kinds []tgr.JobKind // nil: all
}

// Lease is a claimed job: it is in progress and belongs to whoever has Token until Until, and longer with each Beat.
type Lease struct {
	Job   tgr.Job
	Run   tgr.Run // with its plan and its event's payload
	Token string  // fencing token: every later write about the job needs it
	Until time.Time
}

// Claim leases the job that has been queued longest, of the kinds asked for, honouring max-parallel among the
// instances of one job of one attempt. It counts one of the job's tries and forgets the steps of an earlier one.
// It returns [ErrNothing] where there is none.
func (s *Store) Claim(ctx context.Context, req ClaimRequest) (*Lease, error) { panic("body follows") }

// Beat extends a lease from now, and tells whether the job is to be cancelled and why. An error of [tgr.Conflict]
// means that the token is stale: the job belongs to another or is completed, and its machine must be closed.
func (s *Store) Beat(ctx context.Context, job tgr.JobID, token string, lease time.Duration) (cancel bool, reason string, err error) {
	panic("body follows")
}

// UpdateSteps replaces the steps of a running job. A step goes only forward ([tgr.NextStep]); steps may be
// added, never removed.
func (s *Store) UpdateSteps(ctx context.Context, job tgr.JobID, token string, steps []tgr.Step) error {
	panic("body follows")
}

// SetMachine records the machine that a running job was given, and its isolation.
func (s *Store) SetMachine(ctx context.Context, job tgr.JobID, token, machine, isolation string) error {
	panic("body follows")
}

// JobResult is how a job ended.
type JobResult struct {
	Conclusion  tgr.Conclusion // required
	Blame       tgr.Blame
	Reason      string
	Outputs     map[string]string
	Steps       []tgr.Step // nil: as UpdateSteps left them
	Annotations []tgr.Annotation
	Reports     []Outgoing // for the outbox, in the same transaction
}

// Finish completes a running job and ends its lease, then derives its run's status anew. A plan job that ends
// so, and not with Planned, completes its run with the same conclusion and reason.
func (s *Store) Finish(ctx context.Context, job tgr.JobID, token string, res JobResult) error {
	panic("body follows")
}

// Release gives a running job back, for a fault of ours: to the queue where it has a try left (requeued), else
// it completes as a failure of ours with the reason. A job that was to be cancelled completes as cancelled.
func (s *Store) Release(ctx context.Context, job tgr.JobID, token, reason string) (requeued bool, err error) {
	panic("body follows")
}

// Expire releases every running job whose lease has ended, and returns them as they are then. It is called
// at start and from time to time.
func (s *Store) Expire(ctx context.Context) ([]tgr.Job, error) { panic("body follows") }

// OwnerGone releases every running job of an owner whatever its lease says, and returns them as they are then:
// for a node that starts and knows that its former self is dead.
func (s *Store) OwnerGone(ctx context.Context, owner string) ([]tgr.Job, error) {
	panic("body follows")
}
