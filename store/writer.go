package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/terraphim/tgr"
)

// batch is how many waiting writes share one transaction, and so one fsync.
const batch = 256

// writer runs all writes on one goroutine, which owns the writing connection. Those that wait while it is busy
// are committed together; each has a savepoint of its own, so that one's failure is not another's.
type writer struct {
	s    *Store
	ops  chan *op
	gone chan struct{} // closed when the goroutine has ended

	mu     sync.RWMutex // held for reading while an op is sent
	closed bool
}

// op is one waiting write.
type op struct {
	fn    func(*tx) error
	taken atomic.Bool // by the writer, to run it, or by its caller, to abandon it
	done  chan error  // buffered
}

// tx is a write transaction at one moment of the clock.
type tx struct {
	*sql.Tx
	ctx context.Context // ends with the time that the transaction has
	s   *Store
	now time.Time

	left    []string           // groups that the operation has left
	entries []entry            // groups that the operation enters
	bodies  bodies             // that the transaction has enqueued
	touched map[tgr.RunID]bool // runs of the transaction that changed
	nudged  map[tgr.RunID]bool // runs of the transaction that are to be settled
}

// touch has Config.Changed told of a run when the transaction is durable.
func (t *tx) touch(run tgr.RunID) { t.touched[run] = true }

func newWriter(s *Store) *writer {
	w := &writer{s: s, ops: make(chan *op, batch), gone: make(chan struct{})}
	go w.loop()
	return w
}

// close lets the waiting writes finish.
func (w *writer) close() {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.ops)
	}
	w.mu.Unlock()
	<-w.gone
}

// write runs fn in a transaction and returns when that is durable. Where ctx ends before fn has begun, fn never
// runs; later it is not interrupted, because SQLite would roll back the whole transaction, and with it the
// writes of others. So the outcome is always known, and fn never runs after write has returned.
func (s *Store) write(ctx context.Context, name string, fn func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	o := &op{fn: fn, done: make(chan error, 1)}
	if err := s.writer.send(ctx, o); err != nil {
		return err
	}
	select {
	case err := <-o.done:
		return s.dialect.fault(name, err)
	case <-ctx.Done():
		if o.taken.CompareAndSwap(false, true) {
			return context.Cause(ctx)
		}
		return s.dialect.fault(name, <-o.done)
	}
}

func (w *writer) send(ctx context.Context, o *op) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		return tgr.Errorf("store.write", tgr.Unavailable, "the database is closed")
	}
	select {
	case w.ops <- o:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *writer) loop() {
	defer close(w.gone)
	for first := range w.ops {
		ops := []*op{first}
	gather:
		for len(ops) < batch {
			select {
			case o, ok := <-w.ops:
				if !ok {
					break gather
				}
				ops = append(ops, o)
			default:
				break gather
			}
		}
		w.commit(ops)
	}
}

// commit runs ops in one transaction and answers each.
func (w *writer) commit(ops []*op) {
	errs := make([]error, len(ops))
	err := w.run(ops, errs)
	for i, o := range ops {
		if err != nil && errs[i] == nil {
			errs[i] = err
		}
		o.done <- errs[i] // nobody listens to one that was abandoned; the channel is buffered
	}
}

// run returns an error where none of ops is durable; errs gets those of single ops.
func (w *writer) run(ops []*op, errs []error) error {
	limit := w.s.dialect.limit
	if limit == 0 {
		return w.transact(context.Background(), ops, errs)
	}
	ctx, done := context.WithTimeoutCause(context.Background(), limit, errTooLong)
	defer done()
	err := w.transact(ctx, ops, errs)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", errTooLong, err)
	}
	return err
}

// transact is run within the time that ctx has. An op that was abandoned is passed over.
func (w *writer) transact(ctx context.Context, ops []*op, errs []error) error {
	begun, err := w.begin(ctx)
	if err != nil && ctx.Err() == nil && w.s.dialect.broken(err) {
		begun, err = w.begin(ctx) // the connection has broken since it was last used
	}
	if err != nil {
		return err
	}
	t := &tx{Tx: begun, ctx: ctx, s: w.s, now: w.s.cfg.Now().UTC(), bodies: bodies{}, touched: map[tgr.RunID]bool{}, nudged: map[tgr.RunID]bool{}}
	for i, o := range ops {
		if !o.taken.CompareAndSwap(false, true) {
			continue
		}
		if _, err := t.Exec("SAVEPOINT op"); err != nil {
			return errors.Join(err, t.Rollback())
		}
		if errs[i] = call(o.fn, t); errs[i] != nil {
			w.s.bodies, t.bodies = bodies{}, bodies{} // nobody knows which of them are undone
			if _, err := t.Exec("ROLLBACK TO SAVEPOINT op"); err != nil {
				return errors.Join(errs[i], err, t.Rollback())
			}
		}
		if _, err := t.Exec("RELEASE SAVEPOINT op"); err != nil {
			return errors.Join(err, t.Rollback())
		}
	}
	if err := t.Commit(); err != nil {
		return err
	}
	w.s.committed(t)
	return nil
}

// begin begins a transaction when it is its turn.
func (w *writer) begin(ctx context.Context) (*sql.Tx, error) {
	t, err := w.s.w.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	if first := w.s.dialect.begin; first != "" {
		_, err = t.ExecContext(ctx, first)
	}
	if err == nil {
		err = w.s.alone.check(ctx, t)
	}
	if err != nil {
		return nil, errors.Join(err, t.Rollback())
	}
	return t, nil
}

// errTooLong is what became of a transaction that was given up.
var errTooLong = &tgr.Error{Op: "store.write", Code: tgr.Unavailable, Message: "the database did not answer in time"}

// Exec is sql.Tx's, within the time that the transaction has, as are the next.
func (t *tx) Exec(query string, args ...any) (sql.Result, error) {
	return t.ExecContext(t.ctx, query, t.s.dialect.args(args)...)
}

// Query is sql.Tx's.
func (t *tx) Query(query string, args ...any) (*sql.Rows, error) {
	return t.Tx.QueryContext(t.ctx, query, t.s.dialect.args(args)...)
}

// QueryRow is sql.Tx's.
func (t *tx) QueryRow(query string, args ...any) *sql.Row {
	return t.Tx.QueryRowContext(t.ctx, query, t.s.dialect.args(args)...)
}

// QueryContext implements querier.
func (t *tx) QueryContext(_ context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.Query(query, args...)
}

// QueryRowContext implements querier.
func (t *tx) QueryRowContext(_ context.Context, query string, args ...any) *sql.Row {
	return t.QueryRow(query, args...)
}

// call makes a panic of fn, which may be another room's function, that op's error: other writes share its goroutine.
func call(fn func(*tx) error, t *tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &tgr.Error{Op: "store.write", Code: tgr.Internal, Message: "a bug", Err: fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
		}
	}()
	t.left, t.entries = nil, nil
	if err := fn(t); err != nil {
		return err
	}
	return t.regroup()
}

// exec runs a statement that must change exactly one row.
func (t *tx) exec(what, query string, args ...any) error {
	res, err := t.Exec(query, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return errors.Join(fmt.Errorf("%s: %d rows changed where one should", what, n), err)
	}
	return nil
}
