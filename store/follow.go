package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/terraphim/tgr"
)

// follow accepts the event on which workflows of the default branch start when something has become of a run: it was
// requested, is in_progress, or completed. The event is durable with the change, and there is one for each attempt and action,
// however often the run comes to it.
func (t *tx) follow(run *tgr.Run, action string) error {
	if t.s.cfg.Follow == nil || run.WorkflowFile == "" {
		return nil
	}
	var list string
	err := t.QueryRow("SELECT followers FROM awaited WHERE repo_id = $1 AND followers <> ''", run.Event.Repo.ID).Scan(&list)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find who follows run %d: %w", run.ID, err)
	}
	var followers []tgr.Follower
	if err := decode(fmt.Sprintf("who follows runs of repository %d", run.Event.Repo.ID), list, &followers); err != nil {
		return err
	}
	id := tgr.DeliveryID(fmt.Sprintf("tgr-run-%d-%d-%s", run.ID, run.Attempt, action))
	var told bool
	if err := t.QueryRow("SELECT COUNT(*) FROM deliveries WHERE id = $1", id).Scan(&told); err != nil || told {
		return err
	}
	full, err := findRun(context.Background(), t, run.ID, true)
	if err != nil {
		return err
	}
	ev, ok := t.s.cfg.Follow(full, action, followers)
	if !ok {
		return nil
	}
	event, err := json.Marshal(ev)
	if err != nil {
		return fmt.Errorf("the event of run %d: %w", run.ID, err)
	}
	_, _, err = t.accept(tgr.Delivery{ID: id, Event: ev}, event)
	return err
}
