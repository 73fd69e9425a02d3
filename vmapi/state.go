package vmapi

// State is where a machine of the server stands.
type State string

// The states.
const (
	Creating State = "creating" // the host makes it
	Booting  State = "booting"  // it is there, and its agent has not answered
	Ready    State = "ready"    // it may be used
	Leased   State = "leased"   // it is promised to somebody for a time
	Paused   State = "paused"   // it stands still
	Stopping State = "stopping" // it is being freed
	Gone     State = "gone"     // nothing is left of it on the host
	Failed   State = "failed"   // it did not come up, or died by itself; nothing is left of it
)

// event is what happens to a machine.
type event string

const (
	evMade   event = "made"     // the provider has started it
	evAnswer event = "answered" // its agent answered, and it was made a machine of its own
	evLease  event = "leased"
	evReturn event = "returned" // the lease was
	evPause  event = "paused"
	evResume event = "resumed"
	evStop   event = "stopped" // somebody wants it gone, or a limit does
	evFreed  event = "freed"   // nothing is left
	evDie    event = "died"    // it did not come up, or died
)

// transition is one arrow of the drawing.
type transition struct {
	from State
	on   event
	to   State
}

// transitions are all that can happen to a machine.
func transitions() []transition {
	return []transition{
		{Creating, evMade, Booting}, {Creating, evStop, Stopping}, {Creating, evDie, Failed},
		{Booting, evAnswer, Ready}, {Booting, evStop, Stopping}, {Booting, evDie, Failed},
		{Ready, evLease, Leased}, {Ready, evPause, Paused}, {Ready, evStop, Stopping}, {Ready, evDie, Failed},
		{Leased, evLease, Leased}, {Leased, evReturn, Ready}, {Leased, evPause, Paused}, {Leased, evStop, Stopping}, {Leased, evDie, Failed},
		{Paused, evResume, Ready}, {Paused, evStop, Stopping}, {Paused, evDie, Failed},
		{Stopping, evFreed, Gone},
	}
}

// after is the state that follows when e happens, if it can.
func (s State) after(e event) (State, bool) {
	for _, t := range transitions() {
		if t.from == s && t.on == e {
			return t.to, true
		}
	}
	return s, false
}

// ended reports whether the machine is no more.
func (s State) ended() bool { return s == Gone || s == Failed }

// usable reports whether commands may be begun.
func (s State) usable() bool { return s == Ready || s == Leased }

// status says it in the words that the original's clients know: they wait for "running".
func (s State) status() string {
	switch s {
	case Creating, Booting:
		return "Creating"
	case Ready, Leased:
		return "running"
	case Gone:
		return "stopped"
	default:
		return string(s)
	}
}
