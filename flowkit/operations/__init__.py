"""Operations: what operators do. Functions return values or yield events; none reads or writes a terminal."""
