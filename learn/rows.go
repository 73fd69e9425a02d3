package learn

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

func idKey(id uint64) string { return strconv.FormatUint(id, 10) }

// row is the present state of a row; nil: it is gone.
func (sp *space) row(k rowKey) any {
	id, _ := strconv.ParseUint(k.key, 10, 64)
	switch k.kind {
	case kindHead:
		return sp.Head
	case kindUnit:
		return present(sp.units, k.key)
	case kindCmd:
		return present(sp.commands, k.key)
	case kindEdge:
		return present(sp.edges, k.key)
	case kindOpen:
		return present(sp.open, k.key)
	case kindTpl:
		return present(sp.drain.byID, id)
	case kindClu:
		return present(sp.clusters, id)
	}
	return nil
}

func present[K comparable, V any](m map[K]*V, key K) any {
	if v, ok := m[key]; ok {
		return v
	}
	return nil
}

// load takes a row that was stored. Templates are to come in the order of their birth.
func (sp *space) load(k rowKey, data []byte) error {
	id, _ := strconv.ParseUint(k.key, 10, 64)
	switch k.kind {
	case kindHead:
		if err := json.Unmarshal(data, &sp.Head); err != nil {
			return err
		}
		sp.drain.born = sp.Head.Born
		return nil
	case kindUnit:
		return decode(data, sp.units, k.key)
	case kindCmd:
		return decode(data, sp.commands, k.key)
	case kindEdge:
		return decode(data, sp.edges, k.key)
	case kindOpen:
		return decode(data, sp.open, k.key)
	case kindClu:
		return decode(data, sp.clusters, id)
	case kindTpl:
		return decode(data, sp.drain.byID, id)
	}
	return fmt.Errorf("a row of kind %q", k.kind)
}

// loaded puts the templates in their leaves.
func (sp *space) loaded() {
	all := make([]*template, 0, len(sp.drain.byID))
	for _, t := range sp.drain.byID {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *template) int { return cmp.Compare(a.Born, b.Born) })
	for _, t := range all {
		sp.drain.insert(t)
	}
}

func decode[K comparable, V any](data []byte, into map[K]*V, key K) error {
	v := new(V)
	if err := json.Unmarshal(data, v); err != nil {
		return err
	}
	into[key] = v
	return nil
}
