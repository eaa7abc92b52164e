package router

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/server"
)

// asked is a search among instances of which each refuses as often as it says, then takes.
func asked(t *testing.T, ctx context.Context, avoid string, ids []string, refuse map[string][]string) (order []string, err error) {
	t.Helper()
	w := &want{tried: map[string]bool{}}
	if avoid != "" {
		w.tried[avoid] = true
	}
	choose := func(context.Context, *want) (cluster.Member, *charge) {
		for _, id := range ids {
			if !w.tried[id] {
				return cluster.Member{ID: id}, &charge{}
			}
		}
		return cluster.Member{}, nil
	}
	_, err = search(ctx, w, avoid, choose, func(m cluster.Member, _ *charge) (*stream, error) {
		order = append(order, m.ID)
		if kinds := refuse[m.ID]; len(kinds) > 0 {
			refuse[m.ID] = kinds[1:]
			return nil, &Error{kinds[0], "no"}
		}
		return &stream{}, nil
	})
	return order, err
}

func TestSearch(t *testing.T) {
	const full, away = server.KindQueueFull, server.KindUnavailable
	for _, c := range []struct {
		name, avoid string
		refuse      map[string][]string
		order       []string
		fails       bool
	}{
		{"the first takes it", "", nil, []string{"a"}, false},
		{"full ones are passed over", "", map[string][]string{"a": {full}, "b": {full}}, []string{"a", "b", "c"}, false},
		{"all are full for who is new", "", map[string][]string{"a": {full}, "b": {full}, "c": {full}}, []string{"a", "b", "c"}, true},
		{"what had a home asks the full ones again, another free one first", "a", map[string][]string{"b": {full}}, []string{"b", "c"}, false},
		{"what had a home waits for the full ones", "a", map[string][]string{"a": {away}, "b": {full, full}, "c": {away}}, []string{"b", "c", "a", "b", "b"}, false},
		{"nobody is there", "a", map[string][]string{"a": {away}, "b": {away}, "c": {away}}, []string{"b", "c", "a"}, true},
	} {
		order, err := asked(t, t.Context(), c.avoid, []string{"a", "b", "c"}, c.refuse)
		if !slices.Equal(order, c.order) || (err != nil) != c.fails {
			t.Errorf("%s: asked %q, %v", c.name, order, err)
		}
	}
	ctx, leave := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	time.AfterFunc(10*time.Millisecond, func() { leave(gone) })
	busy := slices.Repeat([]string{full}, 1000)
	if order, err := asked(t, ctx, "a", []string{"a", "b"}, map[string][]string{"a": {away}, "b": busy}); err == nil || len(order) != 2 {
		t.Errorf("nobody waits any more: asked %q, %v", order, err)
	}
}
