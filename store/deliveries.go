package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/terraphim/tgr"
)

// Accept makes a delivery durable: the delivery, one run (queued, not yet planned) and its plan job are committed in
// one transaction before it returns. fresh is false where the delivery's ID, or its BodyHash under another ID, was
// accepted before: then nothing is written, and runs are those of the first delivery. An empty BodyHash is
// never a replay. Concurrent calls share a transaction where the database is busy.
func (s *Store) Accept(ctx context.Context, d tgr.Delivery) (runs []tgr.RunID, fresh bool, err error) {
	event, err := eventOf(d)
	if err != nil {
		return nil, false, err
	}
	err = s.write(ctx, "accept", func(t *tx) error {
		runs, fresh, err = t.accept(d, event)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	return runs, fresh, nil
}

// eventOf is a delivery's event as it is stored.
func eventOf(d tgr.Delivery) ([]byte, error) {
	if d.ID == "" || d.Event.Name == "" {
		return nil, tgr.Errorf("store.accept", tgr.Invalid, "a delivery needs an id and the name of its event")
	}
	event, err := json.Marshal(d.Event)
	if err != nil {
		return nil, tgr.Errorf("store.accept", tgr.Invalid, "the event of delivery %s cannot be stored: %v", d.ID, err)
	}
	return event, nil
}

func (t *tx) accept(d tgr.Delivery, event []byte) ([]tgr.RunID, bool, error) {
	if d.Received.IsZero() {
		d.Received = t.now
	}
	payload := []byte(d.Event.Payload)
	if payload == nil {
		payload = []byte{}
	}
	res, err := t.Exec("INSERT INTO deliveries (id, body_hash, received, event, payload) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
		d.ID, sql.NullString{String: d.BodyHash, Valid: d.BodyHash != ""}, nanos(d.Received), string(event), payload)
	if err != nil {
		return nil, false, fmt.Errorf("add delivery %s: %w", d.ID, err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return nil, false, err
	} else if n == 0 {
		ids, err := t.earlier(d)
		return ids, false, err
	}
	run := tgr.Run{Attempt: 1, Delivery: d.ID, Event: d.Event, Status: tgr.Queued, Created: t.now}
	if err := t.insertRun(&run); err != nil {
		return nil, false, err
	}
	if err := t.insertPlanJob(run); err != nil {
		return nil, false, err
	}
	return []tgr.RunID{run.ID}, true, t.notify(run, nil)
}

// earlier returns the runs of the delivery that d repeats: by its id, or else by its body.
func (t *tx) earlier(d tgr.Delivery) ([]tgr.RunID, error) {
	var first tgr.DeliveryID
	err := t.QueryRow("SELECT id FROM deliveries WHERE id = $1 OR body_hash = $2 ORDER BY CASE WHEN id = $1 THEN 0 ELSE 1 END LIMIT 1",
		d.ID, d.BodyHash).Scan(&first)
	if err != nil {
		return nil, fmt.Errorf("find what delivery %s repeats: %w", d.ID, err)
	}
	return runsOf(context.Background(), t, first)
}

// insertPlanJob queues the job that plans run.
func (t *tx) insertPlanJob(run tgr.Run) error {
	return t.insert(&job{queued: t.now, template: "plan", Job: tgr.Job{
		Run: run.ID, Attempt: run.Attempt, Kind: tgr.PlanJob, Key: "plan", Name: "plan", Total: 1, Status: tgr.Queued, Created: t.now,
	}})
}

// runsOf lists the runs of a delivery.
func runsOf(ctx context.Context, q querier, id tgr.DeliveryID) ([]tgr.RunID, error) {
	return runIDs(ctx, q, "SELECT id FROM runs WHERE delivery = $1 ORDER BY id", id)
}

// DeliveryInfo is a delivery in a list.
type DeliveryInfo struct {
	tgr.Delivery             // its event is without payload
	Runs         []tgr.RunID // that it started
}

// Deliveries lists up to limit deliveries (0: 50; at most 1000), the latest first.
func (s *Store) Deliveries(ctx context.Context, limit int) ([]DeliveryInfo, error) {
	list, err := s.deliveries(ctx, limit)
	return list, s.dialect.fault("deliveries", err)
}

func (s *Store) deliveries(ctx context.Context, limit int) ([]DeliveryInfo, error) {
	rows, err := s.r.QueryContext(ctx, "SELECT id, body_hash, received, event FROM deliveries ORDER BY seq DESC LIMIT $1", page(limit))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []DeliveryInfo
	for rows.Next() {
		d, err := scanDelivery(rows.Scan)
		if err != nil {
			return nil, err
		}
		list = append(list, DeliveryInfo{Delivery: d})
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	rows.Close()
	for i := range list {
		if list[i].Runs, err = runsOf(ctx, s.r, list[i].ID); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Delivery returns a delivery with its payload, or an error of [tgr.NotFound].
func (s *Store) Delivery(ctx context.Context, id tgr.DeliveryID) (tgr.Delivery, error) {
	var payload []byte
	d, err := scanDelivery(func(into ...any) error {
		return s.r.QueryRowContext(ctx, "SELECT id, body_hash, received, event, payload FROM deliveries WHERE id = $1", id).Scan(append(into, &payload)...)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return d, tgr.Errorf("store.delivery", tgr.NotFound, "there is no delivery %q", id)
	}
	d.Event.Payload = payload
	return d, s.dialect.fault("delivery", err)
}

func scanDelivery(scan func(...any) error) (d tgr.Delivery, err error) {
	var hash sql.NullString
	var received int64
	var event string
	if err := scan(&d.ID, &hash, &received, &event); err != nil {
		return d, err
	}
	d.BodyHash, d.Received = hash.String, moment(received)
	return d, decode(fmt.Sprintf("event of delivery %s", d.ID), event, &d.Event)
}

const maxPage = 1000

// page bounds the length of a list.
func page(limit int) int {
	if limit <= 0 {
		return 50
	}
	return min(limit, maxPage)
}
