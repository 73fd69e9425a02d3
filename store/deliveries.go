package store

import (
	"context"

	"github.com/terraphim/tgr"
)

// Accept makes a delivery durable: the delivery, one run (queued, not yet planned) and its plan job are committed in
// one transaction before it returns. fresh is false where the delivery's ID, or its BodyHash under another ID, was
// accepted before: then nothing is written, and runs are those of the first delivery. An empty BodyHash is
// never a replay.
func (s *Store) Accept(ctx context.Context, d tgr.Delivery) (runs []tgr.RunID, fresh bool, err error) {
	panic("body follows")
}

// DeliveryInfo is a delivery in a list.
type DeliveryInfo struct {
	tgr.Delivery             // its event is without payload
	Runs         []tgr.RunID // that it started
}

// Deliveries lists up to limit deliveries (0: 50; at most 1000), the latest first.
func (s *Store) Deliveries(ctx context.Context, limit int) ([]DeliveryInfo, error) {
	panic("body follows")
}

// Delivery returns a delivery with its payload, or an error of [tgr.NotFound].
func (s *Store) Delivery(ctx context.Context, id tgr.DeliveryID) (tgr.Delivery, error) {
	panic("body follows")
}
