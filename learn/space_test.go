package learn

import (
	"encoding/json"
	"testing"
)

// rowsOf are all rows of a space as they would be stored.
func rowsOf(t testing.TB, sp *space) map[rowKey]string {
	t.Helper()
	out := map[rowKey]string{}
	put := func(k rowKey) {
		data, err := json.Marshal(sp.row(k))
		if err != nil {
			t.Fatal(err)
		}
		out[k] = string(data)
	}
	put(rowKey{kindHead, ""})
	for k := range sp.units {
		put(rowKey{kindUnit, k})
	}
	for k := range sp.commands {
		put(rowKey{kindCmd, k})
	}
	for k := range sp.edges {
		put(rowKey{kindEdge, k})
	}
	for k := range sp.open {
		put(rowKey{kindOpen, k})
	}
	for k := range sp.clusters {
		put(rowKey{kindClu, idKey(k)})
	}
	for k := range sp.drain.byID {
		put(rowKey{kindTpl, idKey(k)})
	}
	return out
}

// reloaded puts what a space would store into another one.
func reloaded(t testing.TB, from, to *space) *space {
	t.Helper()
	for k, data := range rowsOf(t, from) {
		if err := to.load(k, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	to.loaded()
	return to
}
