package expr

import "sync"

// Object is an ordered map whose keys are looked up without regard to case, unless it is an exact one, and keep the case they
// were first set with.
// Build it with Set and SetLazy in one goroutine; once it is part of a Value or an Env only read it, which
// is safe for concurrent use.
type Object struct {
	keys  []string
	items []member
	index map[string]int // folded key → position; nil while the object is small
	exact bool
}

// member is the value of one key: value where lazy is nil.
type member struct {
	value Value
	lazy  *lazy
}

// lazy is a value that is loaded when it is first wanted, and never again, whether that succeeds or not.
type lazy struct {
	once  sync.Once
	load  func() (Value, error)
	value Value
	err   error
}

// smallObject is the number of keys up to which comparing them one by one beats an index.
const smallObject = 8

// NewObject returns an empty object.
func NewObject() *Object { return &Object{} }

// NewExactObject returns an empty object whose keys differ by case, as environment variables do on Linux.
func NewExactObject() *Object { return &Object{exact: true} }

// Set sets a key and returns o. If the key is there, its value is replaced and its spelling kept.
func (o *Object) Set(key string, v Value) *Object {
	o.put(key, member{value: v})
	return o
}

// SetLazy sets a key whose value load gives when it is first wanted. Load is called at most once;
// an error of it is the answer from then on. It must not use o.
func (o *Object) SetLazy(key string, load func() (Value, error)) {
	o.put(key, member{lazy: &lazy{load: load}})
}

func (o *Object) put(key string, m member) {
	if i := o.find(key); i >= 0 {
		o.items[i] = m
		return
	}
	o.keys = append(o.keys, key)
	o.items = append(o.items, m)
	switch {
	case o.index != nil:
		o.index[o.fold(key)] = len(o.keys) - 1
	case len(o.keys) > smallObject:
		o.index = make(map[string]int, 2*len(o.keys))
		for i, k := range o.keys {
			o.index[o.fold(k)] = i
		}
	}
}

// find returns the position of key, or -1.
func (o *Object) find(key string) int {
	if o.index != nil {
		if i, ok := o.index[o.fold(key)]; ok {
			return i
		}
		return -1
	}
	for i, k := range o.keys {
		if k == key || !o.exact && equalFold(k, key) {
			return i
		}
	}
	return -1
}

// fold is what the index has in place of a key.
func (o *Object) fold(key string) string {
	if o.exact {
		return key
	}
	return fold(key)
}

// Get returns the value of key and whether there is such a key. The error is that of a lazy value's loader.
func (o *Object) Get(key string) (Value, bool, error) {
	if o == nil {
		return Value{}, false, nil
	}
	i := o.find(key)
	if i < 0 {
		return Value{}, false, nil
	}
	v, err := o.at(i)
	return v, true, err
}

// Has tells whether there is such a key; it loads nothing.
func (o *Object) Has(key string) bool { return o != nil && o.find(key) >= 0 }

// Keys returns the keys in the order in which they were set. The caller must not change them.
func (o *Object) Keys() []string {
	if o == nil {
		return nil
	}
	return o.keys
}

// Len returns the number of keys.
func (o *Object) Len() int {
	if o == nil {
		return 0
	}
	return len(o.keys)
}

// at returns the value at position i, loading it if need be.
func (o *Object) at(i int) (Value, error) {
	l := o.items[i].lazy
	if l == nil {
		return o.items[i].value, nil
	}
	l.once.Do(func() {
		l.value, l.err = l.load()
		l.load = nil // what it holds on to may go
		if l.err != nil {
			l.value = Value{}
		}
	})
	return l.value, l.err
}
