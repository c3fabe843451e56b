"""Operations: the use cases of operators. Functions return values or yield events; none reads or writes a terminal."""
